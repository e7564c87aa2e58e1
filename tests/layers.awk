# layers.awk: a file includes only headers of ours that stand before it in `modules`, or its own; so there are no circles,
# and nothing of fcgi-app/ below lib/. With headers=1 the order binds headers only. Prints each violation as file:line and
# ends with 1 if there was one.
#
#   awk -f tests/layers.awk -v modules="mem err buf ..." lib/*.[ch]

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
    if (!(own in place)) complain("the Makefile does not name it")
    free = headers && FILENAME ~ /\.c$/
}

/^[ \t]*#[ \t]*include[ \t]*"/ {
    header = $0
    sub(/^[^"]*"/, "", header)
    sub(/".*$/, "", header)
    module = header
    sub(/\.(h|def|inc)$/, "", module)
    if (!(module in place)) complain("includes " header ", which is no module of its program or of lib")
    else if (own in place && !free && place[module] > place[own]) complain("includes " header ", which stands above it")
}

END { exit wrong }
