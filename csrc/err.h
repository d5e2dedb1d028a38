/*
 * err: the one list of return codes.
 *
 * A function that can fail returns 0 or one of these negative codes; err_strerror() names each in
 * a sentence fit for an operator. What happens to a single frame is not an error of the call: see
 * verdict.h.
 */
#ifndef LASTMILE_ERR_H
#define LASTMILE_ERR_H

#define ERR_LIST(X)                                                                                \
    X(ARGUMENT, 1, "an argument is out of its range")                                              \
    X(SUITE, 2, "not a cipher suite of IEEE 802.1AE-2018 clause 14")                               \
    X(KEY_SIZE, 3, "the key's size does not fit the cipher suite (16 or 32 octets)")               \
    X(SSCI, 4, "an XPN suite needs an SSCI other than 0, the others need 0")                       \
    X(AN, 5, "an association number is 0 to 3")                                                    \
    X(PN, 6, "the packet number is 0 or beyond the suite's last one")                              \
    X(PN_BACK, 7, "a packet number never goes back under one key")                                 \
    X(WINDOW, 8, "a replay window is 0 to 2^30-1 frames")                                          \
    X(OFFSET, 9, "a confidentiality offset is 0, 30 or 50")                                        \
    X(TCI, 10, "ES and SCB exclude an explicit SCI (IEEE 802.1AE-2018 9.5)")                       \
    X(NO_SC, 11, "no such receive SC")                                                             \
    X(NO_SA, 12, "no SA is installed under this AN")                                               \
    X(AN_IN_USE, 13, "this AN holds an SA; delete it first")                                       \
    X(SC_FULL, 14, "the table of receive SCs is full")                                             \
    X(MEMORY, 15, "out of memory")                                                                 \
    X(BOUNDS, 16, "a frame, with its headroom and tailroom, lies outside its buffer")              \
    X(CIPHER, 17, "the cipher backend refused the key")                                            \
    X(BACKEND, 18, "no such cipher backend, or none that passes its self-test")

enum err {
    ERR_OK = 0,
#define ERR_ENUM(name, number, text) ERR_##name = -number,
    ERR_LIST(ERR_ENUM)
#undef ERR_ENUM
};

/* err_strerror returns the sentence of a code, "unknown error" for one that is not in the list. */
const char *err_strerror(int code);

#endif
