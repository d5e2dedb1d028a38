/* Whole MACsec frames in one pass: SecTAG, IV, cipher and ICV together, for frames of the usual
 * kind.
 *
 * gcm_seal and gcm_open take ops, and filling them in costs a small frame almost as much as its
 * cipher: pointers, lengths and IVs are written by the SecY and read back by the cipher. A backend
 * may therefore do both. It does so for runs of frames that differ in nothing but their addresses,
 * payload and packet number, as a stream of data makes them, and leaves all others to the ops:
 *
 *   usual    explicit SCI, everything behind the SecTAG encrypted, one SA, one length in the run;
 *            out: all of the run with the same VLAN tag, or all without one;
 *            in: no padding (SL is 0, so 48 octets of secure data or more), and a number whose low
 *            half is not below that of the lowest acceptable one.
 *
 * What a usual frame becomes is what the ops would make of it, octet for octet. */
#ifndef LASTMILE_GCM_FRAMES_H
#define LASTMILE_GCM_FRAMES_H

#include "dataplane.h"
#include "gcm.h"
#include "sectag.h"

enum { GCM_FRAMES_MAX = 64 }; /* frames in one call */

/* gcm_usual: what the frames of a call have in common. */
struct gcm_usual {
    struct gcm_iv_base iv;
    uint8_t sectag[SECTAG_SIZE_MAX]; /* SL and PN are 0 */
    uint8_t verdict;                 /* of those that succeed */
    uint8_t pop_vlan;                /* in: take the VLAN tag off */
};

/* gcm_protect: protect the first frames of `frames`, which must all have the length and the VLAN
 * tag of the first one, under the numbers from `pn` on. Returns how many it did, 0 to n; the others
 * are untouched. n is at most GCM_FRAMES_MAX; headroom and tailroom as for secy_protect. */
size_t gcm_protect(const struct gcm_key *key, const struct gcm_usual *usual, uint8_t *arena,
                   struct frame *frames, size_t n, uint64_t pn);

/* What gcm_validate found out of the frames it took. */
struct gcm_seen {
    uint32_t pn_low[GCM_FRAMES_MAX]; /* numbers on the wire; the high half is that of `lowest_pn` */
    uint64_t authentic;              /* bit i: frame i is */
};

/* gcm_validate: open the first frames of `frames`, which must all have the length of the first one.
 * Returns how many it took: it stops before the first group with an unusual frame. Authentic
 * ones have been stripped of SecTAG and ICV (and VLAN tag) and have the verdict; the others' data
 * are zeroed and their verdict is VERDICT_IN_NOT_VALID. Nothing of the replay window is looked at:
 * the caller checks and commits the numbers afterwards, and overrules the verdict of a late one. */
size_t gcm_validate(const struct gcm_key *key, const struct gcm_usual *usual, uint8_t *arena,
                    struct frame *frames, size_t n, uint64_t lowest_pn, struct gcm_seen *seen);

#endif
