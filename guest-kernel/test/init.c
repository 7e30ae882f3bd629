/*
 * PID 1 of the kernel's own tests: does what "test=" on the command line says, prints what it
 * found as lines that start with "test:", and ends the machine. Needs no file but itself.
 */
#define _GNU_SOURCE
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/reboot.h>
#include <linux/vm_sockets.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SECTOR 512
#define BLOCK (1 << 20)

static int failures;

void check(const char *what, int ok)
{
	if (!ok) {
		printf("test: FAILED %s: %s\n", what, strerror(errno));
		failures++;
	}
}

static void fd_check(const char *what, int fd)
{
	check(what, fd >= 0);
	if (fd >= 0)
		close(fd);
}

static int file_has(const char *path, const char *word)
{
	static char text[1 << 16];
	int fd = open(path, O_RDONLY);
	ssize_t n = 0, got;

	errno = ENOENT;
	if (fd < 0)
		return 0;
	while ((got = read(fd, text + n, sizeof(text) - 1 - n)) > 0)
		n += got;
	text[n] = 0;
	close(fd);
	return strstr(text, word) != NULL;
}

static void filesystems(void)
{
	static const char *const wanted[] = { "erofs", "ext4", "overlay", "tmpfs", "devtmpfs",
					      "proc", "sysfs", "cgroup2", "mqueue", "devpts" };
	char what[64];

	for (size_t i = 0; i < sizeof(wanted) / sizeof(*wanted); i++) {
		snprintf(what, sizeof(what), "%s\n", wanted[i]);
		check(wanted[i], file_has("/proc/filesystems", what));
	}
}

static void cgroups(void)
{
	static const char *const wanted[] = { "cpu", "io", "memory", "pids" };

	mkdir("/cg", 0755);
	check("mount cgroup2", mount("none", "/cg", "cgroup2", 0, NULL) == 0);
	for (size_t i = 0; i < sizeof(wanted) / sizeof(*wanted); i++)
		check(wanted[i], file_has("/cg/cgroup.controllers", wanted[i]));
}

static int in_namespaces(void *unused)
{
	(void)unused;
	return getpid() == 1 ? 0 : 1;
}

static void namespaces(void)
{
	static char stack[1 << 16] __attribute__((aligned(16)));
	int flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS |
		    CLONE_NEWIPC | CLONE_NEWCGROUP | SIGCHLD;
	int status = -1;
	pid_t child = clone(in_namespaces, stack + sizeof(stack), flags, NULL);

	check("clone into namespaces", child > 0);
	check("child of namespaces", child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

static void system_calls(void)
{
	struct io_uring_params ring = { 0 };
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	fd_check("epoll", epoll_create1(0));
	fd_check("eventfd", eventfd(0, 0));
	fd_check("signalfd", signalfd(-1, &signals, 0));
	fd_check("timerfd", timerfd_create(CLOCK_MONOTONIC, 0));
	fd_check("inotify", inotify_init1(0));
	fd_check("memfd", memfd_create("x", MFD_ALLOW_SEALING));
	fd_check("io_uring", syscall(SYS_io_uring_setup, 8, &ring));
	fd_check("landlock", syscall(SYS_landlock_create_ruleset, NULL, 0, 1));
	fd_check("pidfd", syscall(SYS_pidfd_open, getpid(), 0));
	fd_check("pty", posix_openpt(O_RDWR));
	fd_check("unix socket", socket(AF_UNIX, SOCK_STREAM, 0));
	fd_check("tcp", socket(AF_INET, SOCK_STREAM, 0));
	fd_check("tcp over ipv6", socket(AF_INET6, SOCK_STREAM, 0));
	fd_check("packet socket", socket(AF_PACKET, SOCK_RAW, 0));
	fd_check("vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
	fd_check("random device", open("/dev/urandom", O_RDONLY));
	check("semaphores", semget(IPC_PRIVATE, 1, 0600) >= 0);
	check("message queue", mq_open("/q", O_CREAT | O_RDWR, 0600, NULL) >= 0);
	check("seccomp filter", syscall(SYS_seccomp, 2 /* GET_ACTION_AVAIL */, 0,
					&(uint32_t){ 0x7fff0000 /* ALLOW */ }) == 0);
	check("ioperm", syscall(SYS_ioperm, 0x80, 1, 1) == 0);
}

static void features(void)
{
	filesystems();
	cgroups();
	namespaces();
	system_calls();
	printf("test: features failed=%d cpus=%ld\n", failures, sysconf(_SC_NPROCESSORS_ONLN));
}

/* FNV-1a over the whole disk, past the page cache. */
static int sum_disk(const char *path, uint64_t *sum, uint64_t *bytes)
{
	unsigned char *block = aligned_alloc(4096, BLOCK);
	int fd = open(path, O_RDONLY | O_DIRECT);
	ssize_t n;

	if (fd < 0 || !block)
		return -1;
	*sum = 0xcbf29ce484222325ull;
	*bytes = 0;
	while ((n = read(fd, block, BLOCK)) > 0) {
		for (ssize_t i = 0; i < n; i++)
			*sum = (*sum ^ block[i]) * 0x100000001b3ull;
		*bytes += n;
	}
	close(fd);
	free(block);
	return n < 0 ? -1 : 0;
}

/* Several readers at once, so that requests queue up for space in the window. */
static int parallel_sums(int readers, uint64_t want)
{
	int bad = 0, status;

	for (int i = 0; i < readers; i++) {
		if (fork() == 0) {
			uint64_t sum, bytes;
			_exit(sum_disk("/dev/vda", &sum, &bytes) || sum != want);
		}
	}
	for (int i = 0; i < readers; i++)
		bad += wait(&status) < 0 || status != 0;
	return bad;
}

static void disk(int reads_only)
{
	uint64_t sum, bytes, again;

	if (sum_disk("/dev/vda", &sum, &bytes)) {
		printf("test: no disk: %s\n", strerror(errno));
		return;
	}
	printf("test: disk bytes=%llu sum=%016llx\n", (unsigned long long)bytes,
	       (unsigned long long)sum);
	if (reads_only)
		return;
	printf("test: parallel bad=%d\n", parallel_sums(8, sum));

	/* Write it back byte for byte complemented, twice: what is read at the end is what was there. */
	unsigned char *block = aligned_alloc(4096, BLOCK);
	int fd = open("/dev/vda", O_RDWR | O_DIRECT);

	for (uint64_t at = 0; fd >= 0 && at < 2 * bytes; at += BLOCK) {
		if (pread(fd, block, BLOCK, at % bytes) != BLOCK)
			break;
		for (int i = 0; i < BLOCK; i++)
			block[i] = ~block[i];
		if (pwrite(fd, block, BLOCK, at % bytes) != BLOCK)
			break;
		if (at == bytes - BLOCK)
			fsync(fd);
	}
	if (sum_disk("/dev/vda", &again, &bytes))
		again = 0;
	printf("test: rewritten sum=%016llx\n", (unsigned long long)again);
}

/* Interrupts of CPU 0 so far. */
static unsigned long interrupts(const char *line)
{
	char text[512];
	unsigned long count = 0;
	FILE *f = fopen("/proc/interrupts", "r");

	while (f && fgets(text, sizeof(text), f)) {
		char *colon = strchr(text, ':');
		if (colon && strstr(text, line) && strstr(text, line) < colon)
			count = strtoul(colon + 1, NULL, 10);
	}
	if (f)
		fclose(f);
	return count;
}

/* Every task's wake-ups so far; with "print" those that came since the last call. */
static void wakeups(int print)
{
	static unsigned long before[4096];
	char path[64], line[256], name[64] = "";

	for (int pid = 1; pid < 4096; pid++) {
		unsigned long count = 0;
		FILE *f;

		snprintf(path, sizeof(path), "/proc/%d/status", pid);
		f = fopen(path, "r");
		if (!f)
			continue;
		while (fgets(line, sizeof(line), f)) {
			sscanf(line, "Name: %63s", name);
			sscanf(line, "voluntary_ctxt_switches: %lu", &count);
		}
		fclose(f);
		if (print && count != before[pid])
			printf("test: idle %s woke %lu times\n", name, count - before[pid]);
		before[pid] = count;
	}
}

static void idle(void)
{
	unsigned long before;

	sleep(10);
	wakeups(0);
	before = interrupts("LOC");
	sleep(30);
	printf("test: idle timer-interrupts=%lu\n", interrupts("LOC") - before);
	wakeups(1);
}

/* What starting and ending containers asks of RCU: namespaces and mounts that come and go. */
static void churn(void)
{
	struct timespec from, to;

	mkdir("/m", 0755);
	clock_gettime(CLOCK_MONOTONIC, &from);
	for (int i = 0; i < 20; i++) {
		if (fork() == 0) {
			unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS);
			mount("none", "/m", "tmpfs", 0, NULL);
			umount2("/m", MNT_DETACH);
			_exit(0);
		}
		wait(NULL);
	}
	clock_gettime(CLOCK_MONOTONIC, &to);
	printf("test: churn us=%ld\n", (to.tv_sec - from.tv_sec) * 1000000 +
					       (to.tv_nsec - from.tv_nsec) / 1000);
}

static void memory(void)
{
	char text[256];
	FILE *f = fopen("/proc/meminfo", "r");

	while (f && fgets(text, sizeof(text), f))
		if (!strncmp(text, "Mem", 3) || !strncmp(text, "Slab", 4) || !strncmp(text, "Percpu", 6))
			printf("test: %s", text);
}

static const char *wanted_test(void)
{
	static char line[4096];
	int fd = open("/proc/cmdline", O_RDONLY);
	ssize_t n = read(fd, line, sizeof(line) - 1);
	char *word;

	close(fd);
	line[n > 0 ? n : 0] = 0;
	word = strstr(line, "test=");
	if (!word)
		return "";
	word += 5;
	word[strcspn(word, " \n")] = 0;
	return word;
}

int main(void)
{
	const char *test;

	setvbuf(stdout, NULL, _IONBF, 0);
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mount("none", "/proc", "proc", 0, NULL);
	mount("none", "/sys", "sysfs", 0, NULL);
	mount("none", "/dev", "devtmpfs", 0, NULL);
	mkdir("/dev/pts", 0755);
	mount("none", "/dev/pts", "devpts", 0, NULL);

	test = wanted_test();
	printf("test: init runs %s\n", test);
	if (!strcmp(test, "features"))
		features();
	else if (!strcmp(test, "disk"))
		disk(0);
	else if (!strcmp(test, "read"))
		disk(1);
	else if (!strcmp(test, "idle"))
		idle();
	else if (!strcmp(test, "renew"))
		renew();
	else if (!strcmp(test, "copy"))
		copy();
	else if (!strcmp(test, "churn"))
		churn();
	else if (!strcmp(test, "memory"))
		memory();
	else if (!strcmp(test, "panic"))
		_exit(1); /* PID 1 may not: the kernel panics. */

	printf("test: done failed=%d\n", failures);
	if (!strcmp(test, "stay") || !strcmp(test, "disk") || !strcmp(test, "read"))
		for (;;)
			pause();
	sync();
	reboot(!strcmp(test, "restart") ? RB_AUTOBOOT :
	       !strcmp(test, "halt")	? RB_HALT_SYSTEM :
					  RB_POWER_OFF);
	return 1;
}
