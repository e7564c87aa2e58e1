/* notify.h: tells a service manager how we are: sd_notify's protocol, a datagram to NOTIFY_SOCKET. */
#ifndef HYPERPAGE_NOTIFY_H
#define HYPERPAGE_NOTIFY_H

/* "READY=1", "RELOADING=1", "STOPPING=1", "MAINPID=..."; lines separated by \n. Does nothing without NOTIFY_SOCKET. */
void notify_send(const char *state);

#endif
