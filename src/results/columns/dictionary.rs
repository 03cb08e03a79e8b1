//! The dictionary of columns in three forms.

use std::fmt::Write;

use serde_json::json;

use super::{Column, Group, SCHEMA_VERSION, all, item_unit};
use crate::cell::Category;
use crate::metrics::{IMPACT_SERIES, ITEM_FIGURES, Series};
use crate::results::folder::{IMPACT, OPERATORS, SUMMARY, TASKS};
use crate::results::impact::{self, ImpactColumn};
use crate::results::operators::{self, OperatorColumn};
use crate::results::tasks::{self, TaskColumn};

/// As `docs/columns.md` has it.
pub fn markdown() -> String {
    let mut text = format!(
        "# Columns of summary.csv and tasks.csv, schema version {SCHEMA_VERSION}\n\n\
         Made by `ortbench columns --markdown`; a test keeps it current. What a row does not have is an empty field: \
         never zero, never a dash.\n\n\
         The groups are those of `summary.csv`; the columns of [tasks.csv](#taskscsv) follow them. A series named \
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
    text.push_str(
        "\n## tasks.csv\n\nA row for each cell and task, in runs that measure accuracy.\n\n\
         | column | unit | type | meaning |\n|---|---|---|---|\n",
    );
    for TaskColumn { name, unit, kind, description, .. } in tasks::columns() {
        let _ = writeln!(text, "| `{name}` | {unit} | {kind} | {} |", description.replace('|', "\\|"));
    }
    text.push_str(
        "\n## operators.csv\n\nA row for each node of each cell, in runs that profile operators.\n\n\
         | column | unit | type | meaning |\n|---|---|---|---|\n",
    );
    for OperatorColumn { name, unit, kind, description, .. } in operators::COLUMNS {
        let _ = writeln!(text, "| `{name}` | {unit} | {kind} | {description} |");
    }
    text.push_str(
        "\n## impact.csv\n\nA row for each figure of each cell whose optimizations are compared.\n\n\
         | column | unit | type | meaning |\n|---|---|---|---|\n",
    );
    for ImpactColumn { name, kind, description, .. } in impact::COLUMNS {
        let _ = writeln!(text, "| `{name}` | | {kind} | {description} |");
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
    let describe_task = |column: &TaskColumn| {
        json!({
            "name": column.name,
            "unit": column.unit,
            "type": column.kind.to_string(),
            "description": column.description,
        })
    };
    let describe_operator = |column: &OperatorColumn| {
        json!({
            "name": column.name,
            "unit": column.unit,
            "type": column.kind.to_string(),
            "description": column.description,
        })
    };
    let describe_impact = |column: &ImpactColumn| {
        json!({
            "name": column.name,
            "unit": "",
            "type": column.kind.to_string(),
            "description": column.description,
        })
    };
    let items = ITEM_FIGURES.iter().map(
        |figure| json!({ "name": figure.name, "unit": item_unit(figure.name), "description": figure.description }),
    );
    json!({
        "schema_version": SCHEMA_VERSION,
        "columns": all().iter().map(describe).collect::<Vec<_>>(),
        "operator_columns": operators::COLUMNS.iter().map(describe_operator).collect::<Vec<_>>(),
        "impact_columns": impact::COLUMNS.iter().map(describe_impact).collect::<Vec<_>>(),
        "task_columns": tasks::columns().iter().map(describe_task).collect::<Vec<_>>(),
        "item_metrics": items.collect::<Vec<_>>(),
    })
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
    let describe_task = |column: &TaskColumn| {
        let kind = column.kind.to_string();
        [column.name, column.unit, &kind, "", Category::Accuracy.name(), column.description, TASKS]
            .map(str::to_owned)
            .to_vec()
    };
    let describe_operator = |column: &OperatorColumn| {
        let kind = column.kind.to_string();
        [column.name, column.unit, &kind, "", Category::Operators.name(), column.description, OPERATORS]
            .map(str::to_owned)
            .to_vec()
    };
    let describe_impact = |column: &ImpactColumn| {
        let kind = column.kind.to_string();
        [column.name, "", &kind, "", Category::OptimizationImpact.name(), column.description, IMPACT]
            .map(str::to_owned)
            .to_vec()
    };
    let summary = all().iter().map(describe);
    let others = tasks::columns().iter().map(describe_task);
    let others = others.chain(operators::COLUMNS.iter().map(describe_operator));
    let others = others.chain(impact::COLUMNS.iter().map(describe_impact));
    std::iter::once(header).chain(summary).chain(others).collect()
}

fn category(column: &Column) -> &'static str {
    column.category.map_or("", |category| category.name())
}
