//! Accuracy: scores of tasks, and how far a cell's answers are from its reference's.

use crate::categories::{Context, Measure};
use crate::error::{Error, Result};

/// The category.
pub struct Accuracy;

impl Measure for Accuracy {
    fn measure(&self, context: &Context) -> Result<()> {
        let _ = context.cell.accuracy.as_ref().ok_or_else(|| Error::new("the cell has no plan for accuracy"))?;
        Err(Error::unsupported("accuracy is not measured yet"))
    }
}
