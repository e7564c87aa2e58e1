# layers.awk: a file of lib/ includes only headers of ours that stand before it in `modules`, or its own; so there are no
# circles, and nothing of fcgi-app/ below. Prints each violation as file:line and ends with 1 if there was one.
#
#   awk -f tests/layers.awk -v modules="mem err buf ..." lib/*.c lib/*.h

BEGIN {
    count = split(modules, list, " ")
    for (i = 1; i <= count; i++) place[list[i]] = i
}

function complain(text)
{
    printf "%s:%d: %s\n", FILENAME, FNR, text
    wrong = 1
}

FNR == 1 {
    own = FILENAME
    sub(/.*\//, "", own)
    sub(/\.(c|h)$/, "", own)
    if (!(own in place)) complain("the Makefile's MODULES do not name it")
}

/^[ \t]*#[ \t]*include[ \t]*"/ {
    header = $0
    sub(/^[^"]*"/, "", header)
    sub(/".*$/, "", header)
    module = header
    sub(/\.(h|def|inc)$/, "", module)
    if (!(module in place)) complain("includes " header ", which is no module of lib")
    else if (own in place && place[module] > place[own]) complain("includes " header ", which stands above it")
}

END { exit wrong }
