//! Image files against what Pillow and transformers make of them (`make_image_golden.py`).

use std::path::PathBuf;

use ortbench::digest::sha256;
use ortbench::vision::{self, Grid, ImageSpec, RgbImage};
use serde_json::Value;

use crate::real;

const BUDGET: u64 = 256 << 20;

/// Decoders of lossy formats differ between libraries: levels by which one value may, and all may on average.
const LOSSY: (u8, f64) = (4, 0.5);

fn file(name: &str) -> PathBuf {
    real::root().join("tests/data/images").join(name)
}

fn cases(name: &str) -> Vec<Value> {
    real::json(&format!("tests/data/images/{name}")).as_array().expect("a list").clone()
}

fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap_or_else(|| panic!("`{key}` is no text"))
}

fn integer(value: &Value) -> u64 {
    value.as_u64().expect("a whole number")
}

fn floats(value: &Value) -> [f32; 3] {
    std::array::from_fn(|channel| value[channel].as_f64().expect("a number") as f32)
}

fn spec(value: &Value) -> ImageSpec {
    ImageSpec {
        patch_size: integer(&value["patch_size"]) as usize,
        temporal_patch_size: integer(&value["temporal_patch_size"]) as usize,
        merge_size: integer(&value["merge_size"]) as usize,
        min_pixels: integer(&value["min_pixels"]),
        max_pixels: integer(&value["max_pixels"]),
        mean: floats(&value["mean"]),
        std: floats(&value["std"]),
    }
}

fn sides(value: &Value) -> (u32, u32) {
    (integer(&value[0]) as u32, integer(&value[1]) as u32)
}

fn grids(value: &Value) -> Vec<Grid> {
    let grid = |thw: &Value| {
        let [time, height, width] = [0, 1, 2].map(|axis| integer(&thw[axis]) as usize);
        Grid { time, height, width }
    };
    value.as_array().expect("a list").iter().map(grid).collect()
}

/// Largest and mean difference of two images of one size.
fn difference(one: &RgbImage, other: &RgbImage) -> (u8, f64) {
    assert_eq!(one.dimensions(), other.dimensions());
    let apart = || one.as_raw().iter().zip(other.as_raw()).map(|(one, other)| one.abs_diff(*other));
    let total: u64 = apart().map(u64::from).sum();
    (apart().max().unwrap_or(0), total as f64 / one.as_raw().len() as f64)
}

#[test]
fn decoding_equals_pillow() {
    for case in cases("cases.json") {
        let name = text(&case, "file");
        let image = vision::open(&file(name), BUDGET).unwrap_or_else(|error| panic!("{name}: {}", error.chain()));
        assert_eq!(image.dimensions(), sides(&case["size"]), "{name}");
        if case["lossy"] == true {
            let pillow = vision::open(&file(&format!("{name}.decoded.png")), BUDGET).unwrap();
            let (most, mean) = difference(&image, &pillow);
            println!("{name}: at most {most} levels, {mean:.4} on average");
            assert!(most <= LOSSY.0 && mean <= LOSSY.1, "{name}: at most {most} levels, {mean:.4} on average");
        } else {
            assert_eq!(sha256(image.as_raw()), text(&case, "decoded_sha256"), "{name}");
        }
    }
}

/// From the same decoded pixels, every byte of the resized image and every bit of `pixel_values` is equal.
#[test]
fn preprocessing_equals_transformers_in_every_bit() {
    for case in cases("cases.json") {
        let (name, spec) = (text(&case, "file"), spec(&case["spec"]));
        let decoded = if case["lossy"] == true { format!("{name}.decoded.png") } else { name.to_owned() };
        let image = vision::open(&file(&decoded), BUDGET).unwrap();

        let (width, height) = vision::smart_resize(image.width(), image.height(), &spec).unwrap();
        assert_eq!((width, height), sides(&case["resized"]), "{name}");
        let resized = vision::resize(&image, width, height);
        assert_eq!(sha256(resized.as_raw()), text(&case, "resized_sha256"), "{name}: resized");

        let patches = vision::preprocess(&image, &spec).unwrap();
        assert_eq!(patches.grid, grids(&Value::Array(vec![case["grid"].clone()]))[0], "{name}");
        assert_eq!(patches.grid, spec.grid(image.width(), image.height()).unwrap(), "{name}");
        assert_eq!(patches.grid.tokens(spec.merge_size) as u64, integer(&case["tokens"]), "{name}");
        assert_eq!(patches.values.shape(), [0, 1].map(|axis| integer(&case["shape"][axis]) as usize), "{name}");
        for sample in case["samples"].as_array().expect("a list") {
            let place = [integer(&sample[0]) as usize, integer(&sample[1]) as usize];
            assert_eq!(f64::from(patches.values[place]), sample[2].as_f64().unwrap(), "{name}: at {place:?}");
        }
        let bytes: Vec<u8> = patches.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(sha256(&bytes), text(&case, "values_sha256"), "{name}: pixel values");
    }
}

#[test]
fn positions_equal_transformers() {
    for case in cases("positions.json") {
        let name = text(&case, "name");
        let ids = |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
        let (grids, image, merge) =
            (grids(&case["grids"]), integer(&case["image_token"]) as u32, integer(&case["merge_size"]) as usize);
        assert_eq!(vision::expand_image_tokens(&ids("prompt"), &grids, image, merge).unwrap(), ids("ids"), "{name}");
        let positions = vision::positions(&ids("ids"), &grids, image, merge).unwrap();
        let expected: [Vec<i64>; 3] = serde_json::from_value(case["positions"].clone()).unwrap();
        assert_eq!(positions.values, expected, "{name}");
        assert_eq!(positions.delta(), case["delta"].as_i64().unwrap(), "{name}");
    }
}
