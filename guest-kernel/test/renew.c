/* What patches/0006 is for: a machine that exists more than once becomes several. */
#define _GNU_SOURCE
#include "test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <linux/tcp.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BOOT_ID "/proc/sys/kernel/random/boot_id"
#define SERVER_PORT 2000
#define CLIENT_PORT 2001

/* One number of TCP's, without its clock: somewhere in the `width` values from `low` on. */
struct part {
	uint32_t low, width;
};

static int same(struct part a, struct part b)
{
	return a.low - b.low <= b.width || b.low - a.low <= a.width;
}

static struct sockaddr_in loopback(int port)
{
	return (struct sockaddr_in){ .sin_family = AF_INET,
				     .sin_port = htons(port),
				     .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
}

static int tcp_socket(int port)
{
	struct sockaddr_in address = loopback(port);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){ 1 }, sizeof(int));
	check("bind", !port || bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
	return fd;
}

/* Both ends of a connection from a port (0: any) to the listener. */
static void dial(int listener, int port, int ends[2])
{
	struct sockaddr_in address = loopback(SERVER_PORT);

	ends[0] = tcp_socket(port);
	check("connect", connect(ends[0], (struct sockaddr *)&address, sizeof(address)) == 0);
	ends[1] = accept(listener, NULL, NULL);
	check("accept", ends[1] >= 0);
}

static void hang_up(int ends[2])
{
	/* With a reset, so that the port pair is free again at once. */
	setsockopt(ends[0], SOL_SOCKET, SO_LINGER, &(struct linger){ 1, 0 }, sizeof(struct linger));
	close(ends[0]);
	close(ends[1]);
}

static uint64_t now(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

/* The hashed parts of sequence number and timestamp offset, always of the same pair of ports. */
static void measure(int listener, struct part *sequence, struct part *timestamp)
{
	uint64_t before, after, ms;
	uint32_t value = 0;
	socklen_t size = sizeof(value);
	int ends[2];

	before = now(CLOCK_REALTIME) >> 6;
	dial(listener, CLIENT_PORT, ends);
	after = now(CLOCK_REALTIME) >> 6;
	check("repair", setsockopt(ends[0], IPPROTO_TCP, TCP_REPAIR, &(int){ 1 }, sizeof(int)) == 0);
	check("queue", setsockopt(ends[0], IPPROTO_TCP, TCP_REPAIR_QUEUE, &(int){ TCP_SEND_QUEUE },
				  sizeof(int)) == 0);
	check("sequence", getsockopt(ends[0], IPPROTO_TCP, TCP_QUEUE_SEQ, &value, &size) == 0);
	/* The next byte's number, one after the SYN's; that one is a hash plus 64 ns of the clock. */
	*sequence = (struct part){ value - 1 - (uint32_t)after, (uint32_t)(after - before) };

	ms = now(CLOCK_MONOTONIC) / 1000000;
	check("timestamp", getsockopt(ends[0], IPPROTO_TCP, TCP_TIMESTAMP, &value, &size) == 0);
	*timestamp = (struct part){ value - (uint32_t)(now(CLOCK_MONOTONIC) / 1000000), 0 };
	timestamp->width = (uint32_t)(now(CLOCK_MONOTONIC) / 1000000 - ms) + 1;
	setsockopt(ends[0], IPPROTO_TCP, TCP_REPAIR, &(int){ 0 }, sizeof(int));
	hang_up(ends);
}

static void reseed(const char *entropy)
{
	struct {
		struct rand_pool_info info;
		char bytes[64];
	} pool = { .info = { .entropy_count = 512, .buf_size = 64 } };
	int fd = open("/dev/random", O_RDWR);

	snprintf(pool.bytes, sizeof(pool.bytes), "%s", entropy);
	check("add entropy", ioctl(fd, RNDADDENTROPY, &pool) == 0);
	check("reseed", ioctl(fd, RNDRESEEDCRNG) == 0);
	close(fd);
}

static int listen_here(void)
{
	struct ifreq up = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	check("loopback", ioctl(listener, SIOCSIFFLAGS, &up) == 0);
	close(listener);
	listener = tcp_socket(SERVER_PORT);
	check("listen", listen(listener, 8) == 0);
	return listener;
}

static int put(const char *id)
{
	int fd = open(BOOT_ID, O_WRONLY);
	int done = fd >= 0 && write(fd, id, strlen(id)) == (ssize_t)strlen(id);

	if (fd >= 0)
		close(fd);
	return done;
}

static void get(char id[37])
{
	int fd = open(BOOT_ID, O_RDONLY);

	check("read boot_id", read(fd, id, 36) == 36);
	id[36] = 0;
	close(fd);
}

static void boot_id(void)
{
	static const char ours[] = "01234567-89ab-4def-8123-456789abcdef";
	static const char *const wrong[] = { "x", "01234567-89ab-4def-8123-456789abcde",
					     "01234567-89ab-4def-8123-456789abcdefg",
					     "01234567-89ab-4def-8123-456789abcdef\n\n",
					     "01234567-89ab-4def-0123-456789abcdef",
					     "00000000-0000-0000-0000-000000000000",
					     "01234567-89ab-4def-c123-456789abcdef" };
	char first[37], id[37];
	int status = -1;

	get(first);
	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++)
		check(wrong[i], !put(wrong[i]) && errno == EINVAL);
	get(id);
	check("boot_id is as it was", !strcmp(first, id));
	check("write boot_id", put(ours));
	get(id);
	check("boot_id is what was written", !strcmp(id, ours));
	check("write boot_id as a line", put("01234567-89ab-4def-8123-456789abcdee\n"));
	if (fork() == 0)
		_exit(setuid(1) || put(ours) || errno != EACCES);
	check("others may not", wait(&status) > 0 && status == 0);
	get(id);
	check("boot_id is the line", !strncmp(id, ours, 35) && id[35] == 'e');
}

/* Megabytes in both directions, over a connection from before. */
static int carries(int ends[2])
{
	static char out[1 << 16], in[1 << 16];
	int good = 1;

	for (int round = 0; round < 32; round++) {
		int from = round & 1;
		ssize_t got, all = 0;

		memset(out, round + 1, sizeof(out));
		good &= write(ends[from], out, sizeof(out)) == sizeof(out);
		while (all < (ssize_t)sizeof(in) && (got = read(ends[!from], in + all, sizeof(in) - all)) > 0)
			all += got;
		good &= all == sizeof(in) && !memcmp(in, out, sizeof(in));
	}
	return good;
}

void renew(void)
{
	int listener = listen_here(), ends[2];
	struct part sequence[3], timestamp[3];

	dial(listener, 0, ends);
	measure(listener, &sequence[0], &timestamp[0]);
	measure(listener, &sequence[1], &timestamp[1]);
	reseed("anything");
	measure(listener, &sequence[2], &timestamp[2]);
	check("one key, one sequence", same(sequence[0], sequence[1]));
	check("one key, one timestamp offset", same(timestamp[0], timestamp[1]));
	check("another key, another sequence", !same(sequence[1], sequence[2]));
	check("another key, another timestamp offset", !same(timestamp[1], timestamp[2]));
	check("an established connection goes on", carries(ends));
	printf("test: the clock explains %u of 2^32\n", sequence[2].width);
	boot_id();
}

void copy(void)
{
	int listener = listen_here();
	struct part sequence, timestamp;
	unsigned char bytes[16];
	char line[80] = "";

	/* The keys are made now, and before there are copies. */
	measure(listener, &sequence, &timestamp);
	printf("test: waiting\n");
	if (!fgets(line, sizeof(line), stdin))
		return;
	if (!strncmp(line, "renew ", 6))
		reseed(line + 6);
	getrandom(bytes, sizeof(bytes), 0);
	measure(listener, &sequence, &timestamp);
	printf("test: copy sequence=%u+%u timestamp=%u+%u random=", sequence.low, sequence.width,
	       timestamp.low, timestamp.width);
	for (size_t i = 0; i < sizeof(bytes); i++)
		printf("%02x", bytes[i]);
	printf("\n");
}
