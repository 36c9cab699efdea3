//! What was measured, as a table in Markdown and as a chart.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// One way of training one model.
#[derive(Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) model: String,
    pub(crate) way: String,
    /// Processor and threads.
    pub(crate) machine: String,
    /// Load of the machine before and after the turns.
    pub(crate) load: [f64; 2],
    /// Turns that the medians are of.
    pub(crate) turns: usize,
    /// Median over the turns of the part of a step that is not the engine's: guest, sandbox and runner.
    pub(crate) sandbox: Option<f64>,
    /// Median seconds a step.
    pub(crate) wall_s: f64,
    /// Median processor seconds a step.
    pub(crate) cpu_s: f64,
    /// Median over the turns of the time beside that of PyTorch eager in the same turn.
    pub(crate) ratio: f64,
    pub(crate) peak_bytes: u64,
    /// Time to the end of the first step, in seconds: compiling included.
    pub(crate) first_s: f64,
}

/// The table.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "# Training steps, side by side\n\nWritten by `cargo xtask bench training` from `training.json`, in which a run replaces the rows of \
         the models that it measured; numbers are medians over the turns. All ways of a model take their turns in one run: that keeps a \
         ratio fair, and only where the load is below the number of threads is it more than a hint, and a time a time. `sandbox` is \
         the part of a step that is not the engine's, beside the same graph called directly.\n\n![chart](training.svg)\n\n\
         | model | way | step, ms | beside PyTorch eager | sandbox | CPU, ms a step | peak memory, MB | beside eager | first step, s | turns | load |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for row in rows {
        let eager = rows.iter().find(|other| other.model == row.model).unwrap_or(row);
        let _ = writeln!(
            text,
            "| {} | {} | {:.2} | {:.2} | {} | {:.2} | {:.0} | {:.2} | {:.2} | {} | {:.1} to {:.1} |",
            row.model,
            row.way,
            row.wall_s * 1e3,
            row.ratio,
            row.sandbox
                .map_or_else(String::new, |share| format!("{:.1} %", share * 100.0)),
            row.cpu_s * 1e3,
            row.peak_bytes as f64 / 1e6,
            row.peak_bytes as f64 / eager.peak_bytes as f64,
            row.first_s,
            row.turns,
            row.load[0],
            row.load[1]
        );
    }
    let machines: BTreeSet<&str> = rows.iter().map(|row| row.machine.as_str()).collect();
    for machine in machines {
        let models: BTreeSet<&str> = rows
            .iter()
            .filter(|row| row.machine == machine)
            .map(|row| row.model.as_str())
            .collect();
        let models: Vec<&str> = models.into_iter().collect();
        let _ = write!(text, "\n{}: {machine}.\n", models.join(", "));
    }
    text
}

const WIDTH: f64 = 860.0;
const LABELS: f64 = 300.0;
const BAR: f64 = 18.0;
const GAP: f64 = 6.0;
const HEAD: f64 = 34.0;

/// Bars of the ratios to PyTorch eager, a block a model, with a line at 1.
pub(crate) fn chart(rows: &[Row]) -> String {
    let most = rows.iter().map(|row| row.ratio).fold(1.2, f64::max);
    let scale = (WIDTH - LABELS - 70.0) / most;
    let mut body = String::new();
    let (mut y, mut model) = (GAP, "");
    for row in rows {
        if row.model != model {
            model = row.model.as_str();
            let _ = writeln!(
                body,
                "<text x=\"10\" y=\"{:.0}\" font-weight=\"bold\">{model}</text>",
                y + 22.0
            );
            y += HEAD;
        }
        let colour = match row.way.split(' ').next() {
            Some("PyTorch") => "#9aa5b1",
            Some("guest") => "#0b6e4f",
            Some("libtorch") => "#c77d3a",
            _ => "#3a9d7c",
        };
        let (length, middle) = (row.ratio * scale, y + BAR - 4.0);
        let _ = writeln!(
            body,
            "<text x=\"24\" y=\"{middle:.0}\">{}</text><rect x=\"{LABELS}\" y=\"{y:.0}\" width=\"{length:.1}\" height=\"{BAR}\" \
             fill=\"{colour}\"/><text x=\"{:.1}\" y=\"{middle:.0}\">{:.2}</text>",
            row.way,
            LABELS + length + 6.0,
            row.ratio
        );
        y += BAR + GAP;
    }
    let one = LABELS + scale;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{:.0}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}<line x1=\"{one:.1}\" x2=\"{one:.1}\" y1=\"0\" y2=\"{y:.0}\" stroke=\"#444\" \
         stroke-dasharray=\"4 3\"/>\n<text x=\"{LABELS}\" y=\"{:.0}\">time of a step beside PyTorch eager; shorter is faster</text>\n</svg>\n",
        y + 28.0,
        y + 18.0
    )
}
