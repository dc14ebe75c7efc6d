//! The results: rows with their baselines and bars, as Markdown and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

/// The bound that a row is compared with: of the ratio, or of the figure itself if there is no baseline.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bar {
    AtLeast(f64),
    AtMost(f64),
}

/// One row. Figures are in the order of the rounds.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) tokend: Vec<f64>,
    /// The name and the figures of the baseline.
    pub(crate) baseline: Option<(String, Vec<f64>)>,
    pub(crate) bar: Option<Bar>,
}

/// The middle of some figures, and their ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// All results of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    /// The functions and system calls of single calls, as Markdown.
    pub(crate) profiles: Vec<String>,
    /// Rows that were not measured, with the reason.
    pub(crate) left_out: Vec<String>,
}

impl Spread {
    pub(crate) fn of(figures: &[f64]) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (last, middle) = (sorted.len() - 1, sorted.len() / 2);
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Self { median, min: sorted[0], max: sorted[last] }
    }

    fn json(self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

impl Row {
    /// tokend's figure as a multiple of the baseline's, round by round.
    pub(crate) fn ratio(&self) -> Option<Spread> {
        let (_, baseline) = self.baseline.as_ref()?;
        let ratios: Vec<f64> = self.tokend.iter().zip(baseline).map(|(own, other)| own / other).collect();
        Some(Spread::of(&ratios))
    }

    pub(crate) fn is_met(&self) -> Option<bool> {
        let figure = self.ratio().unwrap_or_else(|| Spread::of(&self.tokend)).median;
        Some(match self.bar? {
            Bar::AtLeast(least) => figure >= least,
            Bar::AtMost(most) => figure <= most,
        })
    }

    fn markdown(&self) -> String {
        let unit = self.unit;
        let figures = |figures: &[f64]| {
            let Spread { median, min, max } = Spread::of(figures);
            format!("{} {unit} ({} to {})", number(median), number(min), number(max))
        };
        let baseline = self.baseline.as_ref();
        let other = baseline.map_or("-".to_owned(), |(name, other)| format!("{name}: {}", figures(other)));
        let ratio = self.ratio().map_or("-".to_owned(), |Spread { median, min, max }| {
            format!("{median:.2} ({min:.2} to {max:.2})")
        });
        let unit = if baseline.is_some() { "x" } else { unit };
        let bar = self.bar.map_or("-".to_owned(), |bar| match bar {
            Bar::AtLeast(least) => format!("at least {least} {unit}"),
            Bar::AtMost(most) => format!("at most {most} {unit}"),
        });
        let met = self.is_met().map_or("-", |met| if met { "yes" } else { "**no**" });
        format!("| {} | {} | {other} | {ratio} | {bar} | {met} |\n", self.what, figures(&self.tokend))
    }

    fn json(&self) -> Value {
        let (at_least, at_most) = match self.bar {
            Some(Bar::AtLeast(least)) => (Some(least), None),
            Some(Bar::AtMost(most)) => (None, Some(most)),
            None => (None, None),
        };
        let baseline = self.baseline.as_ref();
        json!({
            "what": self.what,
            "unit": self.unit,
            "tokend": Spread::of(&self.tokend).json(),
            "baseline": baseline.map(|(name, _)| name),
            "baseline_figure": baseline.map(|(_, figures)| Spread::of(figures).json()),
            "ratio": self.ratio().map(Spread::json),
            "at_least": at_least,
            "at_most": at_most,
            "is_met": self.is_met(),
        })
    }
}

impl Report {
    /// Adds a row without a baseline.
    pub(crate) fn add(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        tokend: Vec<f64>,
        bar: Option<Bar>,
    ) {
        self.rows.push(Row { what: what.into(), unit, tokend, baseline: None, bar });
    }

    pub(crate) fn markdown(&self, facts: &[(&str, String)]) -> String {
        let mut text = String::from("| fact | |\n| --- | --- |\n");
        for (name, value) in facts {
            let _ = writeln!(text, "| {name} | {value} |");
        }
        text += "\n| what | tokend: median (min to max) | baseline | ratio | bar | met |\n\
                 | --- | --- | --- | --- | --- | --- |\n";
        self.rows.iter().for_each(|row| text += &row.markdown());
        self.profiles.iter().for_each(|profile| text += profile);
        if !self.left_out.is_empty() {
            text += "\nLeft out:\n\n";
            for reason in &self.left_out {
                let _ = writeln!(text, "- {reason}");
            }
        }
        text
    }

    pub(crate) fn json(&self, facts: &[(&str, String)]) -> Value {
        let facts: serde_json::Map<String, Value> =
            facts.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        json!({ "machine": facts, "rows": rows, "left_out": self.left_out })
    }
}

/// A figure with three digits or more.
fn number(figure: f64) -> String {
    match figure.abs() {
        100.0.. => format!("{figure:.0}"),
        10.0.. => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}
