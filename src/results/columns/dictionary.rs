//! The dictionary of columns in three forms.

use std::fmt::Write;

use serde_json::json;

use super::{Column, Group, SCHEMA_VERSION, all, item_unit};
use crate::metrics::{IMPACT_SERIES, ITEM_FIGURES, Series};
use crate::results::folder::SUMMARY;
use crate::results::side::TABLES;

/// As `docs/columns.md` has it.
pub fn markdown() -> String {
    let mut text = format!(
        "# Columns of the tables, schema version {SCHEMA_VERSION}\n\n\
         Made by `ortbench columns --markdown`; a test keeps it current. What a row does not have is an empty field: \
         never zero, never a dash.\n\n\
         The groups are those of `summary.csv`; the columns of [tasks.csv](#taskscsv), \
         [operators.csv](#operatorscsv) and [impact.csv](#impactcsv) follow them. A series named \
         `STEM_UNIT` in `samples.csv` has here a column for each statistic, `STEM_STATISTIC_UNIT`.\n"
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
    for table in TABLES {
        let _ = writeln!(
            text,
            "\n## {}\n\n{}\n\n| column | unit | type | meaning |\n|---|---|---|---|",
            table.file(),
            table.rows()
        );
        for (name, unit, kind, description) in table.columns() {
            let _ = writeln!(text, "| `{name}` | {unit} | {kind} | {} |", description.replace('|', "\\|"));
        }
    }
    text.push_str(
        "\n### Figures in impact.csv\n\nWhat `metric` may be; samples.csv has the runs of both arms under the same names.\n\n\
         | metric | unit | meaning |\n|---|---|---|\n",
    );
    for Series { name, unit, description, .. } in IMPACT_SERIES {
        let _ = writeln!(text, "| `{name}` | {unit} | {description} |");
    }
    text.push_str(
        "\n## Items in samples.csv\n\nWhat `metric` may be in a row that has a `task` and an `item`.\n\n\
         | metric | unit | meaning |\n|---|---|---|\n",
    );
    for figure in ITEM_FIGURES {
        let _ = writeln!(text, "| `{}` | {} | {} |", figure.name, item_unit(figure.name), figure.description);
    }
    text
}

/// Arrays of objects, one a table.
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
    let items = ITEM_FIGURES.iter().map(
        |figure| json!({ "name": figure.name, "unit": item_unit(figure.name), "description": figure.description }),
    );
    let mut tables = json!({
        "schema_version": SCHEMA_VERSION,
        "columns": all().iter().map(describe).collect::<Vec<_>>(),
        "item_metrics": items.collect::<Vec<_>>(),
    });
    for table in TABLES {
        let columns = table.columns().into_iter().map(|(name, unit, kind, description)| {
            json!({ "name": name, "unit": unit, "type": kind.to_string(), "description": description })
        });
        tables[table.key()] = columns.collect();
    }
    tables
}

/// A CSV table.
pub fn csv() -> Vec<Vec<String>> {
    let header = ["name", "unit", "type", "group", "category", "description", "table"].map(str::to_owned).to_vec();
    let describe = |column: &Column| {
        vec![
            column.name.clone(),
            column.unit.to_owned(),
            column.kind.to_string(),
            column.group.to_string(),
            category(column).to_owned(),
            column.description.clone(),
            SUMMARY.to_owned(),
        ]
    };
    let others = TABLES.into_iter().flat_map(|table| {
        table.columns().into_iter().map(move |(name, unit, kind, description)| {
            [name, unit, &kind.to_string(), "", table.category().name(), description, table.file()]
                .map(str::to_owned)
                .to_vec()
        })
    });
    std::iter::once(header).chain(all().iter().map(describe)).chain(others).collect()
}

fn category(column: &Column) -> &'static str {
    column.category.map_or("", |category| category.name())
}
