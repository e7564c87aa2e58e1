# hyperpage: session service. `make run` serves on localhost:8080, `make test` proves it, README.md explains it.

# Modules in floor order: a file includes only headers that stand before it, of lib/ and of its own program (`make layers`).
# In the coordinator that holds for headers: its loop and its table of duties serve those whom they call.
MODULES := mem fault err buf clock log \
           config folder program endpoints metrics shared processes health totals exposition breaker coordination platforms task \
           waiters pollset \
           span json http ids pod_name limiter session session_line session_merge life message election \
           redis_url redis_error redis_slots lookup resp redis_link redis_links \
           redis_sentinel redis_cluster redis subscriber messenger pg schema turns \
           session_cache redis_keys store_backend redis_scan user_index session_events redis_rotation store_redis \
           store_embedded store_refuge replay shelter store user_sessions
HEADERS := mem fault redis_keys store_backend # of these there is only a header
POOL    := record api routes api_ids api_change api_sessions api_extend api_rotate api_admin api_coordination api_rate_limit \
           backlog checks api_metrics_coordination api_metrics api_status api_overview exchange handover connection worker keeper \
           children listener notify master hyperpage-fcgi
CTL     := report daemon rounds node ctl_pool ctl_top ctl_cluster ctl_jobs ctl_sessions ctl_store ctl_move ctl_migrate \
           ctl_config remote ctl_remote hyperpagectl
COORDINATOR := coordinator duties leadership pods coherence fence rate_limits survey census jobs registry cleanup warmup \
               operations inbox hyperpage-coordinator

BUILD   ?= build
CC      ?= cc
Q       := $(if $(V),,@)# make V=1 shows the commands
PYTHON  ?= /usr/bin/python3
SIDE_BY_SIDE ?= 3# files of system tests that run at once: they mostly wait
VERSION := 0.1.0
PREFIX  ?= /usr/local
export PREFIX DESTDIR SYSCONFDIR

CSTD     := -std=c11 -D_GNU_SOURCE
WARNINGS := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla
HARDEN   := -fPIE -fstack-protector-strong -fstack-clash-protection \
            $(shell $(CC) -fcf-protection -E -x c /dev/null >/dev/null 2>&1 && echo -fcf-protection)
OPTIMISE ?= -O2 -D_FORTIFY_SOURCE=2
CFLAGS   += $(CSTD) $(WARNINGS) $(HARDEN) $(OPTIMISE) -g $(SANITIZE)
CPPFLAGS += -iquote lib -iquote fcgi-app/pool -iquote $(BUILD) -isystem /usr/include/postgresql -DHYPERPAGE_VERSION='"$(VERSION)"' $(FAULTS)
LDFLAGS  += -pie -Wl,-z,relro,-z,now $(SANITIZE)
LDLIBS   := -lfcgi -lhiredis -ljson-c -luuid -lsqlite3 -lpq -lev -lpthread

ASAN     := BUILD=build/asan OPTIMISE=-O1 SANITIZE="-fsanitize=address,undefined -fno-sanitize-recover=all"

LIB      := $(BUILD)/libhyperpage.a
PROGRAMS := $(BUILD)/hyperpage-fcgi $(BUILD)/hyperpage-coordinator $(BUILD)/hyperpagectl # make install takes each with its unit and its page
ONLY     ?= test_*
UNITS    := $(patsubst tests/unit/%.c,$(BUILD)/tests/unit/%,\
              $(filter-out tests/unit/$(WITHOUT).c,$(wildcard $(ONLY:%=tests/unit/%.c))))
PROBES   := $(patsubst tests/system/%.c,$(BUILD)/tests/system/%,$(wildcard tests/system/*.c))
THREADED := $(patsubst tests/unit/%.c,build/tsan/tests/unit/%,$(wildcard tests/unit/test_*threads.c))
BENCHES  := $(patsubst tests/bench/%.c,$(BUILD)/tests/bench/%,$(wildcard tests/bench/*.c))
FUZZERS  := $(patsubst tests/fuzz/%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZED   := $(patsubst %,lib/%.c,err buf clock span json endpoints http ids session session_line session_merge message config) fcgi-app/pool/record.c
FUZZ_SECONDS ?= 60
LIB_O    := $(patsubst %,$(BUILD)/lib/%.o,$(filter-out $(HEADERS),$(MODULES)))
POOL_O   := $(patsubst %,$(BUILD)/fcgi-app/pool/%.o,$(POOL))
CTL_O    := $(patsubst %,$(BUILD)/fcgi-app/ctl/%.o,$(CTL))
COORDINATOR_O := $(patsubst %,$(BUILD)/fcgi-app/coordinator/%.o,$(COORDINATOR))

.SECONDARY: # objects of tests stay for the next time
.PHONY: all deps run demo test units system faults nemesis promises reliability hosts layers browser reference bench bench-peers asan tsan fuzz format \
        install uninstall deb fresh clean
all: $(PROGRAMS) $(BUILD)/man/hyperpage.conf.5

$(LIB): $(LIB_O)
	@rm -f $@
	$(Q)$(AR) rcs $@ $^
$(BUILD)/hyperpage-fcgi: $(POOL_O) $(LIB)
	@echo "  LINK $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(BUILD)/hyperpage-coordinator: $(COORDINATOR_O) $(LIB)
	@echo "  LINK $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(BUILD)/hyperpagectl: $(CTL_O) $(LIB)
	@echo "  LINK $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) -lcurl
$(BUILD)/tests/unit/test_pool_%: $(BUILD)/tests/unit/test_pool_%.o $(filter-out %/hyperpage-fcgi.o,$(POOL_O)) $(LIB)
	@echo "  LINK $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) -lcmocka
$(BUILD)/tests/unit/%: $(BUILD)/tests/unit/%.o $(LIB)
	@echo "  LINK $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) -lcmocka
$(BUILD)/tests/system/%: $(BUILD)/tests/system/%.o $(LIB)
	@echo "  LINK $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(BUILD)/tests/bench/%: $(BUILD)/tests/bench/%.o $(LIB)
	@echo "  LINK $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	@echo "  CC $<"
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/lib/schema.o: $(BUILD)/schema.inc
$(BUILD)/schema.inc: conf/schema/embed.awk $(wildcard conf/schema/*.sql)
	@mkdir -p $(@D)
	@awk -f $^ > $@
$(BUILD)/man/hyperpage.conf.5: docs/man/options.awk conf/reference.md docs/man/hyperpage.conf.mdoc
	@mkdir -p $(@D)
	$(Q)awk -f $^ > $@
-include $(wildcard $(BUILD)/*/*.d $(BUILD)/*/*/*.d)

# --- the two commands of README.md; variables of the command line reach the programs through the environment
deps:
	@conf/deps.sh run
run: deps
	@$(MAKE) --no-print-directory -j$$(nproc) all
	@exec env BUILD=$(BUILD) conf/run.sh
demo: # three nodes behind a balancer on port 8080, and what to try there
	@conf/deps.sh demo
	@$(MAKE) --no-print-directory -j$$(nproc) all
	@exec env BUILD=$(BUILD) conf/demo.sh
test:
	@conf/deps.sh test
	@$(MAKE) --no-print-directory -j$$(nproc) all layers
	@$(MAKE) --no-print-directory -j$$(nproc) $(ASAN) units WITHOUT=test_session_cache
	@$(MAKE) --no-print-directory units ONLY=test_session_cache # steps through every instruction: a minute with ASan
	@$(MAKE) --no-print-directory tsan
	@$(MAKE) --no-print-directory system

units: $(UNITS)
	@set -e; for t in $(UNITS); do echo "== $$t"; $$t; done
system: all $(PROBES) faults
	@HYPERPAGE_BUILD=$(BUILD) $(PYTHON) -B -m pytest -q -p no:cacheprovider -n $(SIDE_BY_SIDE) --dist loadfile tests/system
faults: # the pool with the places of lib/fault.h at which a test may kill it
	@$(MAKE) --no-print-directory BUILD=$(BUILD)/faults FAULTS=-DHYPERPAGE_FAULTS all
reliability: all $(PROBES) # the long form of the outages, and the table of docs/reliability.md
	@HYPERPAGE_LONG=1 HYPERPAGE_BUILD=$(BUILD) $(PYTHON) -B -m pytest -q -p no:cacheprovider tests/system/test_outage.py tests/system/test_two_nodes.py
hosts: all $(PROBES) faults # three nodes behind a balancer, each machine a network namespace: restarted, lost, cut off; as root
	@HYPERPAGE_LONG=1 HYPERPAGE_BUILD=$(BUILD) $(PYTHON) -B -m pytest -q -p no:cacheprovider tests/system/hosts
nemesis: all $(PROBES) faults # two minutes in which everything goes wrong at once, and the load of half a minute
	@HYPERPAGE_BUILD=$(BUILD) $(PYTHON) -B tests/system/nemesis.py 120
	@HYPERPAGE_BUILD=$(BUILD) LOAD_SECONDS=30 $(PYTHON) -B -m pytest -q -s -p no:cacheprovider tests/system/test_coordinator_load.py
promises: all $(PROBES) faults # the long form of what the coordinator promises of copies, PostgreSQL and a kill at each step: a quarter of an hour
	@HYPERPAGE_LONG=1 HYPERPAGE_BUILD=$(BUILD) $(PYTHON) -B -m pytest -q -s -p no:cacheprovider tests/system/test_coherence.py \
	  tests/system/test_postgres.py tests/system/test_registry.py tests/system/test_leader_faults.py
browser: all # the status page in Chromium; screenshots in $(BUILD)/browser. CHROMIUM= is another one
	@for p in chromium node npm; do command -v $$p > /dev/null || exec conf/deps.sh browser; done
	@mkdir -p $(BUILD)/browser
	@cd $(BUILD)/browser && cp -u $(CURDIR)/tests/browser/package*.json $(CURDIR)/tests/browser/.npmrc . && npm ci --silent
	@NODE_PATH=$(abspath $(BUILD))/browser/node_modules HYPERPAGE_BUILD=$(abspath $(BUILD)) node --test tests/browser
layers:
	@awk -f tests/layers.awk -v modules="$(MODULES)" lib/*.[ch]
	@awk -f tests/layers.awk -v modules="$(MODULES) $(POOL)" fcgi-app/pool/*.[ch]
	@awk -f tests/layers.awk -v modules="$(MODULES) $(CTL:daemon=daemon ctl)" fcgi-app/ctl/*.[ch]
	@awk -f tests/layers.awk -v modules="$(MODULES) $(COORDINATOR)" -v headers=1 fcgi-app/coordinator/*.[ch]
reference: $(BUILD)/hyperpage-fcgi
	$< --reference > conf/reference.md

# --- more ways to look at it
bench: all $(BENCHES) # BENCH='--only get-kept --rounds 9': its options; --help lists them
	@command -v wrk > /dev/null || conf/deps.sh tools
	@$(PYTHON) -B tests/bench/run.py --build $(BUILD) $(BENCH)
bench-peers: all # beside php-fpm, Express and webdis: docs/peers.md. BENCH='--only get --rounds 9'
	@conf/deps.sh peers
	@mkdir -p $(BUILD)/peers
	@cd $(BUILD)/peers && cp -u $(CURDIR)/tests/bench/peers/package*.json $(CURDIR)/tests/bench/peers/.npmrc . && npm ci --silent
	@$(PYTHON) -B tests/bench/peers.py --build $(BUILD) $(BENCH)
asan: # unit and system tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(MAKE) $(ASAN) units system
tsan: # what processes share, from the threads of one
	@$(MAKE) --no-print-directory BUILD=build/tsan OPTIMISE=-O1 SANITIZE=-fsanitize=thread $(THREADED)
	@set -e; for t in $(THREADED); do echo "== $$t"; $$t; done
fuzz: # FUZZ_SECONDS of each target
	@command -v clang > /dev/null || conf/deps.sh tools
	@set -e; for f in $(FUZZERS); do mkdir -p build/fuzz; \
	  clang $(CPPFLAGS) $(CSTD) -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
	    -o build/fuzz/$$f tests/fuzz/$$f.c $(FUZZED) $(LDLIBS); \
	  build/fuzz/$$f -max_total_time=$(FUZZ_SECONDS) -max_len=70000 -verbosity=0; done
format:
	clang-format -i lib/*.[ch] fcgi-app/*/*.[ch] tests/unit/*.[ch] tests/fuzz/*.c tests/bench/*.[ch]
install: all
install uninstall: # to DESTDIR, PREFIX and SYSCONFDIR; what goes where: conf/install.sh
	@MAN=$(BUILD)/man conf/install.sh $@ $(PROGRAMS)
deb: # BUILD/hyperpage_VERSION_ARCH.deb
	@conf/deps.sh package
	@$(MAKE) --no-print-directory all
	@VERSION=$(VERSION) MAN=$(BUILD)/man conf/debian/build.sh $(BUILD) $(PROGRAMS)
fresh: # the README's commands and the package on machines made from nothing; as root. QUICK=1: without `make test`
	@conf/deps.sh fresh
	@HYPERPAGE_BUILD=$(BUILD) $(PYTHON) -B -m pytest -q -s -p no:cacheprovider tests/fresh $(if $(QUICK),-k "not second_command")
clean:
	rm -rf build
