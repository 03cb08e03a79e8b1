//! The axis `optimizations`.

use super::*;
use crate::cell::Technique;

fn with(values: &str) -> String {
    GOOD.replace("batch: [1, 4]", &format!("batch: [1, 4]\n  optimizations: {values}"))
}

/// What the cells of one configuration switch on.
fn switched(text: &str) -> Vec<String> {
    let matrix = load_text(text).unwrap();
    let first = matrix.cells[0].clone();
    let same =
        |cell: &&Cell| cell.workload == first.workload && cell.backend == first.backend && cell.model == first.model;
    matrix.cells.iter().filter(same).filter_map(|cell| Some(cell.optimizations.as_ref()?.to_string())).collect()
}

#[test]
fn techniques_stand_alone_together_and_with_options() {
    let values =
        "[none, smart_paging, 'tensor_compression+disk_pipeline', {smart_paging: {share: 25%}}, {kernel_fusion: }]";
    // In the order of the file; techniques of one value in the order of their names' list.
    assert_eq!(
        switched(&with(values)),
        ["none", "smart_paging", "tensor_compression+disk_pipeline", "smart_paging(share=25%)", "kernel_fusion"]
    );
}

#[test]
fn all_is_each_by_itself() {
    let all = switched(&with("all"));
    assert_eq!(all, Technique::NAMES);
    assert_eq!(switched(&with("[none, all]")).len(), 1 + Technique::ALL.len());
    // An option that has its default is not said.
    assert_eq!(switched(&with("{smart_paging: {against: mapped}}")), ["smart_paging"]);
}

#[test]
fn a_file_that_says_nothing_of_them_has_the_cells_it_had() {
    let (before, after) = (load_text(GOOD).unwrap(), load_text(&with("none")).unwrap());
    let ids = |matrix: &Matrix| matrix.cells.iter().map(|cell| cell.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&before), ids(&after));
    assert!(before.cells.iter().all(|cell| cell.optimizations.is_none()));
    assert!(after.cells.iter().all(|cell| !cell.is_optimized() && cell.optimizations.is_some()));
    let category = |matrix: &Matrix| matrix.cells[0].categories.contains(&Category::OptimizationImpact);
    assert!(!category(&before) && category(&after), "it is asked for by the axis");
}

#[test]
fn the_plain_package_is_found_by_its_path() {
    let matrix = load_text(&with("kernel_fusion")).unwrap();
    let plain = |name: &str| {
        let cell = matrix.cells.iter().find(|cell| cell.model.name == name).unwrap();
        cell.optimizations.as_ref().unwrap().plain.as_ref().map(|plain| plain.written.clone())
    };
    assert!(plain("tiny").unwrap().ends_with("-plain"));
    assert_eq!(plain("foreign"), None, "its path does not say the flavour");
}

#[test]
fn mistakes_have_places_and_remedies() {
    let cases = [
        ("unknown technique", with("[none, smart_pagin]")),
        ("unknown technique among several", with("smart_paging+fusion")),
        ("unknown option", with("{smart_paging: {shares: 50%}}")),
        ("unknown word of an option", with("{smart_paging: {against: maped}}")),
        ("a share that is none", with("{smart_paging: {share: 150%}}")),
        ("options of one that has none of that name", with("{sharding_streaming: {against: swap}}")),
        ("twice", with("[disk_offload, disk_offload]")),
        ("twice by its default", with("[smart_paging, {smart_paging: {share: 50%}}]")),
        ("twice in one value", with("disk_offload+disk_offload")),
        ("nothing", with("[]")),
        ("an empty mapping", with("[{}]")),
        ("a list in a list", with("[[disk_offload]]")),
        ("the category without the axis", format!("{GOOD}categories: [optimization_impact]\n")),
    ];
    let texts: Vec<_> = cases.iter().map(|(name, text)| format!("## {name}\n{}\n", error(text))).collect();
    insta::assert_snapshot!(texts.join("\n"));
}
