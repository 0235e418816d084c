# Prints the Makefile's groups, targets and variables with their descriptions: `make help`.
BEGIN { print "unhinged-vm: boot, watch and drive virtual machines\n\nmake TARGET [VARIABLE=value …]" }
/^##@ / { printf "\n%s\n", substr($0, 5) }
/^[a-zA-Z_-]+:.* ## / { split($0, part, ":"); sub(/^.* ## /, ""); printf "  %-24s %s\n", part[1], $0 }
/^[A-Z_]+ = ?.*##: / {
    split($0, side, /##: /); split(side[1], word, / = ?/)
    printf "  %-24s %s\n", word[1] "=" word[2], side[2]
}
