/* test.h: cmocka and the headers it needs, in their order. */
#ifndef HYPERPAGE_TEST_H
#define HYPERPAGE_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#endif
