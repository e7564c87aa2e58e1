# hyperpage: session service. `make run` serves on localhost:8080, `make test` proves it, README.md explains it.

# Modules of lib/ in floor order: a file includes only headers that stand before it (`make layers`).
MODULES := err buf clock log \
           config shared metrics task pollset \
           span json http ids session \
           redis_url redis turns \
           store_redis store_embedded store
POOL    := record routes api_sessions api_status connection handover worker keeper children listener notify master \
           hyperpage-fcgi

BUILD   ?= build
CC      ?= cc
PYTHON  ?= /usr/bin/python3
VERSION := 0.1.0
PREFIX  ?= /usr/local

CSTD     := -std=c11 -D_GNU_SOURCE
WARNINGS := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla
HARDEN   := -fPIE -fstack-protector-strong -fstack-clash-protection -fcf-protection
OPTIMISE ?= -O2 -D_FORTIFY_SOURCE=2
CFLAGS   += $(CSTD) $(WARNINGS) $(HARDEN) $(OPTIMISE) -g $(SANITIZE)
CPPFLAGS += -iquote lib -iquote fcgi-app/pool -DHYPERPAGE_VERSION='"$(VERSION)"'
LDFLAGS  += -pie -Wl,-z,relro,-z,now $(SANITIZE)
LDLIBS   := -lfcgi -lhiredis -ljson-c -luuid -lsqlite3 -lev -lpthread

LIB      := $(BUILD)/libhyperpage.a
PROGRAMS := $(BUILD)/hyperpage-fcgi
UNITS    := $(patsubst tests/unit/%.c,$(BUILD)/tests/unit/%,$(wildcard tests/unit/test_*.c))
LIB_O    := $(patsubst %,$(BUILD)/lib/%.o,$(MODULES))
POOL_O   := $(patsubst %,$(BUILD)/fcgi-app/pool/%.o,$(POOL))

.PHONY: all deps run test layers clean
all: $(PROGRAMS)

$(LIB): $(LIB_O)
	@rm -f $@
	$(AR) rcs $@ $^
$(BUILD)/hyperpage-fcgi: $(POOL_O) $(LIB)
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(BUILD)/tests/unit/%: $(BUILD)/tests/unit/%.o $(LIB)
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) -lcmocka
$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<
-include $(wildcard $(BUILD)/*/*.d $(BUILD)/*/*/*.d)

layers:
	@awk -f tests/layers.awk -v modules="mem $(MODULES)" lib/*.c lib/*.h
clean:
	rm -rf build
