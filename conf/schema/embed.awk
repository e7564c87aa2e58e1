# embed.awk: SQL files NNN_name.sql as rows { version, "name", "text" }, of a C table.
#
#   awk -f conf/schema/embed.awk conf/schema/*.sql > schema.inc

FNR == 1 {
    if (NR > 1) print "},"
    name = FILENAME
    sub(/.*\//, "", name)
    sub(/\.sql$/, "", name)
    printf "{ %d, \"%s\",\n", name, name
}

{
    gsub(/\\/, "\\\\")
    gsub(/"/, "\\\"")
    printf "\"%s\\n\"\n", $0
}

END { print "}," }
