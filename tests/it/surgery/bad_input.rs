//! What is refused, by name, before anything is written.

use std::path::Path;

use super::text_file;
use crate::real::{fails, package_of};

fn refused(package: &Path, output: &Path, arguments: &[&str]) -> String {
    let (package, output) = (package.to_str().expect("UTF-8"), output.to_str().expect("UTF-8"));
    let mut all = vec!["surgery", package, "--output", output];
    all.extend(arguments);
    let (code, text) = fails(&all);
    assert_eq!(code, 2, "{text}");
    text
}

#[test]
fn nothing_is_left_of_what_cannot_be_done() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("cut");
    let (dense, mixture) = (package_of("qwen3-tiny", "int4-fused"), package_of("qwen3-moe-tiny", "int4-fused"));
    let empty = text_file(folder.path(), "");
    let empty = empty.to_str().expect("UTF-8");
    for (package, arguments, expected) in [
        (&dense, &["--keep-experts", "4"][..], "the model `qwen3-tiny` (Qwen3ForCausalLM) has no experts to take out"),
        (
            &mixture,
            &["--keep-experts", "1"],
            "keeping 1 of 8 experts is too few: every token is sent to 2, so at most 6 can go",
        ),
        (&mixture, &["--keep-experts", "0%"], "keeping 0 of 8 experts is too few"),
        (&mixture, &["--keep-experts", "9"], "9 experts cannot stay: the model has 8 in a layer"),
        (&dense, &["--drop-layers", "100%"], "dropping 4 of the model's 4 layers would leave none: at most 2 can go"),
        (&dense, &["--drop-layers", "4", "--unprotected"], "would leave none: at most 3 can go"),
        (&dense, &["--drop-layers", "3"], "at most 2 can go (the first and the last one are protected)"),
        (&dense, &["--trim-vocabulary", empty], "would remove every word: of 1024 tokens at most 765 can go"),
        (&dense, &["--drop-layers", "1", "--calibration-text", empty], "the calibration text has no tokens"),
        (&dense, &["--drop-layers", "1", "--calibration-text", "no-such.txt"], "cannot read the text `no-such.txt`"),
        (&dense, &["--drop-layers", "some"], "write a count as `8`, or a share as `25%`"),
        (&dense, &[], "nothing is to be cut off"),
    ] {
        let text = refused(package, &output, arguments);
        assert!(text.contains(expected), "{arguments:?}: {text}");
        assert!(!output.exists(), "{arguments:?}");
    }
    // No hidden leftovers either.
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).expect("a folder").map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["text.txt"]);
}

#[test]
fn other_folders_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let package = package_of("qwen3-tiny", "int4-fused");
    // The output is there already.
    let text = refused(&package, folder.path(), &["--drop-layers", "1"]);
    assert!(text.contains("exists already"), "{text}");
    let pack = folder.path().join("pack");
    let made = crate::real::ortbench(&["pack", package.to_str().unwrap(), "--output", pack.to_str().unwrap()]);
    assert!(made.status.success());
    let text = refused(&pack, &folder.path().join("cut"), &["--drop-layers", "1"]);
    assert!(text.contains("is a pack") && text.contains("hint: operate on the package that it was made of"), "{text}");
    let text = refused(&folder.path().join("nowhere"), &folder.path().join("cut"), &["--drop-layers", "1"]);
    assert!(text.contains("there is no such folder"), "{text}");
}
