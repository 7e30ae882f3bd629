/* What the files of the kernel's own tests share. */
#ifndef TEST_H
#define TEST_H

/* Counts and prints what is not as it should be. */
void check(const char *what, int ok);

/* In one machine: what a reseed on request renews, and what it leaves alone. */
void renew(void);

/* In copies of one machine: prints what they share or do not, once told over the console to go on. */
void copy(void);

#endif
