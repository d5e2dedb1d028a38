#include "sectag.h"

enum { SL_RESERVED = 0xC0 };

bool sectag_tci_valid(uint8_t tci_an)
{
    if (tci_an & SECTAG_TCI_VERSION)
        return false;
    if (tci_an & SECTAG_TCI_SC && tci_an & (SECTAG_TCI_ES | SECTAG_TCI_SCB))
        return false;
    return !(tci_an & SECTAG_TCI_E) == !(tci_an & SECTAG_TCI_C);
}

bool sectag_parse(const uint8_t *frame, size_t len, struct sectag *tag)
{
    if (len < SECTAG_AT + SECTAG_SIZE)
        return false;

    const uint8_t *at = frame + SECTAG_AT;
    const uint8_t tci_an = at[2], short_length = at[3];
    const uint32_t data_at = SECTAG_AT + sectag_size(tci_an);

    if (!sectag_tci_valid(tci_an) || short_length & SL_RESERVED || short_length > SECTAG_SHORT_MAX)
        return false;
    if (len < data_at + SECTAG_ICV_SIZE)
        return false;

    /* Ethernet pads short frames behind the ICV; only SL tells where that begins. */
    const size_t rest = len - data_at - SECTAG_ICV_SIZE;
    if (short_length == 0 ? rest <= SECTAG_SHORT_MAX
                          : rest < short_length || short_length < SECTAG_DATA_MIN)
        return false;

    tag->sci = tci_an & SECTAG_TCI_SC ? at + SECTAG_SIZE : NULL;
    tag->pn_low = wire_get32(at + 4);
    tag->data_at = data_at;
    tag->data_len = short_length == 0 ? (uint32_t)rest : short_length;
    tag->tci_an = tci_an;
    return true;
}

void sectag_build(uint8_t *at, uint8_t tci_an, uint8_t short_length, uint32_t pn_low,
                  const uint8_t *sci)
{
    wire_put16(at, SECTAG_ETHERTYPE);
    at[2] = tci_an;
    at[3] = short_length;
    wire_put32(at + 4, pn_low);
    if (tci_an & SECTAG_TCI_SC)
        memcpy(at + SECTAG_SIZE, sci, SECTAG_SCI_SIZE);
}
