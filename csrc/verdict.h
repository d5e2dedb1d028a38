/*
 * verdict: how a frame's way through the SecY ended.
 *
 * Every frame gets exactly one verdict, and a verdict is the 802.1AE counter that the frame is
 * counted under (IEEE8021-SECY-MIB, IEEE 802.1AE-2018 10.7; the names of the 2006 edition where
 * management tools still use them). A frame either goes on (DELIVER) or dies (DROP); there is no
 * third way and no unnamed death. Five of the names are ours, for deaths that the standard rules
 * out by closing the controlled port first; they are marked below.
 */
#ifndef LASTMILE_VERDICT_H
#define LASTMILE_VERDICT_H

enum { VERDICT_DROP, VERDICT_DELIVER };

/* name as it appears in status and metrics, whether the frame goes on */
#define VERDICT_LIST(X)                                                                            \
    X(OUT_PROTECTED, "out_pkts_protected", VERDICT_DELIVER)    /* integrity only */                \
    X(OUT_ENCRYPTED, "out_pkts_encrypted", VERDICT_DELIVER)    /* integrity and confidentiality */ \
    X(OUT_UNTAGGED, "out_pkts_untagged", VERDICT_DELIVER)      /* protectFrames is off */          \
    X(OUT_TOO_LONG, "out_pkts_too_long", VERDICT_DROP)         /* the port could not carry it */   \
    X(OUT_TOO_SHORT, "out_pkts_too_short", VERDICT_DROP)       /* ours: no Ethernet header */      \
    X(OUT_NO_SA, "out_pkts_no_sa", VERDICT_DROP)               /* ours: no SA to send under */     \
    X(OUT_PN_EXHAUSTED, "out_pkts_pn_exhausted", VERDICT_DROP) /* ours: SA used up */              \
    X(OUT_NOT_SEALED, "out_pkts_not_sealed", VERDICT_DROP)     /* ours: the cipher failed */       \
    X(IN_OK, "in_pkts_ok", VERDICT_DELIVER)                                                        \
    X(IN_UNTAGGED, "in_pkts_untagged", VERDICT_DELIVER)       /* no SecTAG, not strict */          \
    X(IN_UNKNOWN_SCI, "in_pkts_unknown_sci", VERDICT_DELIVER) /* no SC, not strict, in clear */    \
    X(IN_UNUSED_SA, "in_pkts_unused_sa", VERDICT_DELIVER)     /* no SA, not strict, in clear */    \
    X(IN_UNCHECKED, "in_pkts_unchecked", VERDICT_DELIVER)     /* validation is disabled */         \
    X(IN_DELAYED, "in_pkts_delayed", VERDICT_DELIVER)         /* late, replay protection is off */ \
    X(IN_INVALID, "in_pkts_invalid", VERDICT_DELIVER)         /* bad ICV, not strict, in clear */  \
    X(IN_TOO_SHORT, "in_pkts_too_short", VERDICT_DROP)        /* ours: no Ethernet header */       \
    X(IN_NO_TAG, "in_pkts_no_tag", VERDICT_DROP)              /* no SecTAG, strict */              \
    X(IN_BAD_TAG, "in_pkts_bad_tag", VERDICT_DROP)            /* SecTAG, length or PN 0 */         \
    X(IN_NO_SCI, "in_pkts_no_sci", VERDICT_DROP)              /* no such SC */                     \
    X(IN_NOT_USING_SA, "in_pkts_not_using_sa", VERDICT_DROP)  /* no SA in use under the AN */      \
    X(IN_LATE, "in_pkts_late", VERDICT_DROP)                  /* replay: too old or seen before */ \
    X(IN_NOT_VALID, "in_pkts_not_valid", VERDICT_DROP)        /* the ICV says no */                \
    X(IN_OVERRUN, "in_pkts_overrun", VERDICT_DROP)            /* no room to receive it */

enum verdict {
#define VERDICT_ENUM(name, text, fate) VERDICT_##name,
    VERDICT_LIST(VERDICT_ENUM)
#undef VERDICT_ENUM
        VERDICT_COUNT
};

/* verdict_delivers returns 1 if a frame with this verdict goes on, else 0. */
int verdict_delivers(unsigned verdict);

/* verdict_name returns the counter's name, NULL beyond the last one. */
const char *verdict_name(unsigned verdict);

#endif
