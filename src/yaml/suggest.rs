//! The nearest valid word.

/// `; did you mean `x`?` when one of the words is near, else the list of them.
pub fn suggest(wrong: &str, words: &[&str]) -> String {
    let nearest = words.iter().map(|word| (distance(wrong, word), *word)).min();
    match nearest {
        Some((distance, word)) if distance <= 1 + wrong.chars().count() / 3 => format!("; did you mean `{word}`?"),
        _ if words.is_empty() => String::new(),
        _ => {
            let list: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
            format!("; known are {}", list.join(", "))
        }
    }
}

/// Edit distance with transpositions of neighbours (optimal string alignment), case ignored.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<_>, Vec<_>) = (a.to_lowercase().chars().collect(), b.to_lowercase().chars().collect());
    let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in table.iter_mut().enumerate() {
        row[0] = i;
    }
    table[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let substitution = table[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = substitution.min(table[i - 1][j] + 1).min(table[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(table[i - 2][j - 2] + 1);
            }
            table[i][j] = best;
        }
    }
    table[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_nearest_word() {
        assert_eq!(distance("bacth", "batch"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(suggest("bacth", &["batch", "backend"]), "; did you mean `batch`?");
        assert_eq!(suggest("zzzzzz", &["a", "b"]), "; known are `a`, `b`");
        assert_eq!(suggest("Fp32", &["fp32", "fp16"]), "; did you mean `fp32`?");
    }
}
