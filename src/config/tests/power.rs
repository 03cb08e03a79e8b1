//! The section `power`.

use super::*;
use crate::cell::PowerSource;

fn with(section: &str) -> String {
    format!("{GOOD}{section}")
}

#[test]
fn it_is_asked_for_by_its_section_or_by_name() {
    let plan = |text: &str| load_text(text).unwrap().cells[0].power.clone();
    assert_eq!(plan(GOOD), None);
    let found =
        plan(&with("power: {source: rapl, estimate_watts_per_cpu: 12.5, idle_seconds: 2, blocks: 7}\n")).unwrap();
    assert_eq!((found.source, found.estimate_watts_per_cpu), (Some(PowerSource::Rapl), Some(12.5)));
    assert_eq!((found.idle_seconds, found.blocks, found.min_block_seconds), (2.0, 7, 1.0));
    assert_eq!(plan(&with("power: {source: auto}\n")).unwrap().source, None);
    assert!(plan(&with("categories: [speed, power]\n")).is_some());
    assert!(plan(&with("power: {blocks: 2}\ncategories: speed\n")).is_none());
    let quick = plan(&with("power: {}\nmeasurement: {profile: quick}\n")).unwrap();
    assert_eq!((quick.idle_seconds, quick.blocks), (1.0, 3));
    let rails = plan(&with("power: {source: hwmon, rails: [ina3221/VDD_CPU, ina3221/VDD_SOC]}\n")).unwrap().rails;
    assert_eq!(rails, ["ina3221/VDD_CPU", "ina3221/VDD_SOC"]);
}

#[test]
fn mistakes_have_places_and_remedies() {
    let cases = [
        ("unknown key", "power: {sorce: rapl}\n"),
        ("unknown source", "power: {source: rappl}\n"),
        ("estimate without a wattage", "power: {source: estimate}\n"),
        ("no wattage at all", "power: {estimate_watts_per_cpu: 0}\n"),
        ("too little idle time", "power: {idle_seconds: 0.1}\n"),
        ("no blocks", "power: {blocks: 0}\n"),
        ("blocks of two lengths", "power: {min_block_seconds: 90}\n"),
        ("rails of another source", "power: {rails: [ina3221/VDD_CPU]}\n"),
        ("rails without driver, and twice", "power: {source: hwmon, rails: [VDD_CPU, VDD_CPU]}\n"),
        ("wrong type", "power: rapl\n"),
    ];
    let texts: Vec<_> = cases.iter().map(|(name, text)| format!("## {name}\n{}\n", error(&with(text)))).collect();
    insta::assert_snapshot!(texts.join("\n"));
}
