//! What the CUDA and TensorRT providers need, piece by piece.

use std::path::Path;

use crate::cli::doctor::Finding;
use crate::runtime::nvidia::pieces::{PIECES, State};

/// One finding a piece.
pub fn findings(root: &Path, runtimes: Option<&Path>) -> Vec<Finding> {
    PIECES
        .iter()
        .map(|piece| {
            let (needed_by, s) = if piece.of_tensorrt { ("TensorRT", "s") } else { ("CUDA and TensorRT", "") };
            match piece.state(root, runtimes) {
                State::Found(file) => Finding::good("gpu", piece.name, file.display().to_string()),
                State::Missing => {
                    let detail = format!("{} not found; {needed_by} need{s} it", piece.library);
                    Finding::lack("gpu", piece.name, detail, piece.advice())
                }
                State::Unfit(why) => Finding::lack("gpu", piece.name, why, piece.advice()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn pieces_are_found_where_the_loader_looks() {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in
            [("etc/ld.so.conf.d/cuda.conf", "# CUDA\n/opt/cuda/lib\n"), ("opt/cuda/lib/libcudart.so.13", "")]
        {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let findings = findings(root.path(), None);
        let found: Vec<_> = findings.iter().filter(|f| f.ok).map(|f| f.name.as_str()).collect();
        assert_eq!(found, ["CUDA 13 runtime"]);
        assert!(findings.iter().all(|finding| finding.ok || finding.remedy.is_some()));
        let driver = &findings[0];
        assert_eq!(driver.detail, "libcuda.so.1 not found; CUDA and TensorRT need it");
        assert!(findings.last().unwrap().detail.ends_with("TensorRT needs it"));
    }
}
