#include "port.h"
#include <errno.h>
int port_xdp_open(struct port *port){(void)port;return port_errno(EOPNOTSUPP);}
void port_xdp_close(struct port *port){(void)port;}
int64_t port_xdp_tx_begin(struct port *port){(void)port;return -1;}
int port_xdp_send(struct port *port, const struct frame *frames, unsigned count){(void)port;(void)frames;(void)count;return -1;}
int port_xdp_receive(struct port *port, struct frame *frames){(void)port;(void)frames;return 0;}
void port_xdp_release(struct port *port){(void)port;}
