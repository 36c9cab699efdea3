//! What was measured, as a table in Markdown and as a chart.

use std::fmt::Write as _;

/// One way of training one model.
pub(crate) struct Row {
    pub(crate) model: &'static str,
    pub(crate) way: String,
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
pub(crate) fn table(rows: &[Row], machine: &str) -> String {
    let mut text = format!(
        "# Training steps, side by side\n\nWritten by `cargo xtask bench training`; the ways take their turns in one run, so that a ratio \
         holds whatever the machine does meanwhile. {machine}\n\n![chart](training.svg)\n\n\
         | model | way | step, ms | beside PyTorch eager | CPU, ms a step | peak memory, MB | beside eager | first step, s |\n\
         |---|---|--:|--:|--:|--:|--:|--:|\n"
    );
    for row in rows {
        let eager = rows.iter().find(|other| other.model == row.model).unwrap_or(row);
        let _ = writeln!(
            text,
            "| {} | {} | {:.2} | {:.2} | {:.2} | {:.0} | {:.2} | {:.2} |",
            row.model,
            row.way,
            row.wall_s * 1e3,
            row.ratio,
            row.cpu_s * 1e3,
            row.peak_bytes as f64 / 1e6,
            row.peak_bytes as f64 / eager.peak_bytes as f64,
            row.first_s
        );
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
            model = row.model;
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
