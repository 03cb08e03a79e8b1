//! What a program prints, however much it prints: the beginning and the end.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};

/// How much is kept of each end.
const KEPT: usize = 32 << 10;

/// Reads all, keeps the first and the last 32 KiB, and says how much lies between. Bytes that are no UTF-8 are
/// replaced.
pub fn read_bounded(mut pipe: impl Read) -> String {
    let mut head = Vec::new();
    let mut tail = VecDeque::new();
    let mut left_out = 0_u64;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let (first, rest) = buffer[..read].split_at(read.min(KEPT - head.len()));
        head.extend_from_slice(first);
        tail.extend(rest);
        let excess = tail.len().saturating_sub(KEPT);
        tail.drain(..excess);
        left_out += excess as u64;
    }
    if left_out == 0 {
        head.extend(&tail);
        return String::from_utf8_lossy(&head).into_owned();
    }
    let tail: Vec<u8> = tail.into();
    let (head, tail) = (String::from_utf8_lossy(&head), String::from_utf8_lossy(&tail));
    format!("{head}\n[{left_out} bytes left out]\n{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_output_is_whole() {
        assert_eq!(read_bounded(&b"one\ntwo\n"[..]), "one\ntwo\n");
        assert_eq!(read_bounded(&b"\xff!"[..]), "\u{fffd}!");
        let exact = "x".repeat(2 * KEPT);
        assert_eq!(read_bounded(exact.as_bytes()), exact);
    }

    #[test]
    fn long_output_keeps_both_ends() {
        let text = format!("begin{}end", "x".repeat(1 << 20));
        let kept = read_bounded(text.as_bytes());
        assert!(kept.starts_with("begin") && kept.ends_with("end"));
        assert!(kept.contains(&format!("\n[{} bytes left out]\n", text.len() - 2 * KEPT)));
    }
}
