# options.awk: puts the table of conf/reference.md, which comes from the programs' own table of options, into a man page
# where that says `.\" options`:
#
#   awk -f docs/man/options.awk conf/reference.md docs/man/hyperpage.conf.mdoc

# Adds text to `options`: a sentence a line, lines of at most 78 columns, none beginning with what roff takes for a request.
function add(text,    word, words, i, column) {
    gsub(/\\/, "\\e", text)
    words = split(text, word, " ")
    column = 0
    for (i = 1; i <= words; i++) {
        if (column > 0 && (column + 1 + length(word[i]) > 78 || word[i - 1] ~ /[.][)]?$/)) {
            options = options "\n"
            column = 0
        }
        if (column == 0 && word[i] ~ /^[.']/) options = options "\\&"
        options = options (column > 0 ? " " : "") word[i]
        column += length(word[i]) + 1
    }
    options = options "\n"
}

FNR == NR && /^\| `/ {
    gsub(/\\\|/, "\001") # a bar that is text
    gsub(/`/, "")
    split($0, cell, / *\| */)
    for (i in cell) gsub("\001", "|", cell[i])
    options = options ".It Ev " cell[2] "\n"
    add(cell[5])
    if (cell[3] == "a secret") options = options "A secret, which may also be given as\n.Ev " cell[2] "_FILE .\n"
    else add("Allowed: " cell[3] ". Default: " cell[4] ".")
}

FNR < NR && /^\.\\" options$/ { printf "%s", options; next }
FNR < NR
