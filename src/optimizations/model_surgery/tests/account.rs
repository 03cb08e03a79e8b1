use std::path::Path;

use super::*;
use crate::package::Package;

/// The exporter's own counts, of every package that `make packages` made.
#[test]
fn counts_are_the_exporter_s() {
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/packages");
    let mut seen = 0;
    for model in ["qwen3-tiny", "qwen3-moe-tiny", "glm4-moe-lite-tiny", "glm4-moe-lite-tiny-absorbed", "qwen3-vl-tiny"]
    {
        for precision in ["fp32", "fp16", "int8", "int4"] {
            for flavour in ["fused", "plain"] {
                let root = packages.join(model).join(format!("{precision}-{flavour}"));
                if !root.is_dir() {
                    continue;
                }
                seen += 1;
                let package = Package::open(&root).unwrap();
                let edition = Edition::of(&package).unwrap();
                let account = Account::of(&edition).unwrap();
                let manifest = &package.manifest;
                let what = format!("{model} {precision} {flavour}");
                let table = manifest.shape.vocab_size * manifest.shape.hidden_size;
                let vision = manifest.image.as_ref().map_or(0, |image| image.parameters);
                let tables = if ties(manifest, account) { table } else { 2 * table };
                assert_eq!(account.total + tables + vision, manifest.parameters.total, "{what}");
                assert_eq!(account.active + table, manifest.parameters.active_per_token, "{what}");
                assert_eq!(account.bytes_read, manifest.bytes_read_per_token.weights, "{what}");
            }
        }
    }
    assert!(seen > 0 || !packages.is_dir(), "run `make packages`");
}
