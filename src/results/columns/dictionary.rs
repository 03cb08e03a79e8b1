//! The dictionary of columns in three forms.

use std::fmt::Write;

use serde_json::json;

use super::{Column, Group, SCHEMA_VERSION, all};

/// As `docs/columns.md` has it.
pub fn markdown() -> String {
    let mut text = format!(
        "# Columns of summary.csv, schema version {SCHEMA_VERSION}\n\n\
         Made by `ortbench columns --markdown`; a test keeps it current. What a row does not have is an empty field: \
         never zero, never a dash.\n\n\
         A series named `STEM_UNIT` in `samples.csv` has here a column for each statistic, `STEM_STATISTIC_UNIT`.\n"
    );
    for group in Group::ALL {
        let (heading, sentence) = group.describe();
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n## {heading}\n\n{sentence}\n\n| column | unit | type | category | meaning |\n|---|---|---|---|---|\n"
        );
        for column in all().iter().filter(|column| column.group == *group) {
            let (name, description) = (&column.name, column.description.replace('|', "\\|"));
            let _ = writeln!(
                text,
                "| `{name}` | {} | {} | {} | {description} |",
                column.unit,
                column.kind,
                category(column)
            );
        }
    }
    text
}

/// A JSON array of objects.
pub fn json() -> serde_json::Value {
    let describe = |column: &Column| {
        json!({
            "name": column.name,
            "unit": column.unit,
            "type": column.kind.to_string(),
            "group": column.group.to_string(),
            "category": column.category.map(|category| category.name()),
            "description": column.description,
        })
    };
    json!({ "schema_version": SCHEMA_VERSION, "columns": all().iter().map(describe).collect::<Vec<_>>() })
}

/// A CSV table.
pub fn csv() -> Vec<Vec<String>> {
    let header = ["name", "unit", "type", "group", "category", "description"].map(str::to_owned).to_vec();
    let describe = |column: &Column| {
        vec![
            column.name.clone(),
            column.unit.to_owned(),
            column.kind.to_string(),
            column.group.to_string(),
            category(column).to_owned(),
            column.description.clone(),
        ]
    };
    std::iter::once(header).chain(all().iter().map(describe)).collect()
}

fn category(column: &Column) -> &'static str {
    column.category.map_or("", |category| category.name())
}
