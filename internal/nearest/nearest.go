// Package nearest finds the word that somebody meant to write.
package nearest

import "strings"

const (
	maxLength = 64 // bytes of a word that is looked at
	maxTypos  = 2
	minPrefix = 3 // bytes that one word must share with the start of another
)

// Word returns the word of known that is most like given; ok is false if none
// is like it. Upper and lower case, '-' and '_' are the same. A word is like
// given when at most one letter of three, and two in all, is wrong, missing, too much or
// swapped with its neighbour, or when one of the two begins with the other.
// Of equally good words it is the first.
func Word(given string, known []string) (word string, ok bool) {
	if len(given) > maxLength {
		return "", false
	}
	given = fold(given)
	best := min(maxTypos, max(1, len(given)/3)) + 1
	prefix := ""
	for _, k := range known {
		folded := fold(k)
		if d := distance(given, folded, best); d < best {
			word, best = k, d
		}
		if prefix == "" && min(len(given), len(folded)) >= minPrefix &&
			(strings.HasPrefix(folded, given) || strings.HasPrefix(given, folded)) {
			prefix = k
		}
	}
	if word == "" {
		word = prefix
	}
	return word, word != ""
}

// fold returns s as it is compared.
func fold(s string) string {
	return strings.NewReplacer("-", "", "_", "").Replace(strings.ToLower(s))
}

// distance returns how many letters must be changed, added, taken away or
// swapped with their neighbour to make b of a, or limit if it is not less.
func distance(a, b string, limit int) int {
	if max(len(a)-len(b), len(b)-len(a)) >= limit {
		return limit
	}
	// Each row is a prefix of a, each column a prefix of b.
	before, above, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, above, row = above, row, before
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			row[j] = min(above[j]+1, row[j-1]+1, above[j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return min(row[len(b)], limit)
}
