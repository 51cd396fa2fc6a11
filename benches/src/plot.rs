//! A picture of the results: one line per metric, lines of one unit on one scale.
//!
//! Colours are set by style sheet, so that the same file is readable on light and dark pages.

use std::path::Path;

use anyhow::{Context, Result};
use svg::Document;
use svg::node::element::{Circle, Line, Rectangle, Style, Text};

use crate::report::{Report, Row, number};

const WIDTH: f64 = 960.0;
/// Where the scale begins, after the names, and ends, before the numbers.
const SCALE_START: f64 = 340.0;
const SCALE_END: f64 = 760.0;
const HEADER_HEIGHT: f64 = 64.0;
const GROUP_HEIGHT: f64 = 34.0;
const ROW_HEIGHT: f64 = 28.0;
const FOOTER_HEIGHT: f64 = 40.0;
const MARGIN: f64 = 16.0;
const DOT_RADIUS: f64 = 5.0;
/// How many characters of the host's description fit into a line.
const HOST_CHARS: usize = 150;

const STYLE: &str = "
svg { --page: #ffffff; --ink: #1f2328; --quiet: #59636e; --line: #d1d9e0; --own: #0969da; --peer: #bc4c00 }
@media (prefers-color-scheme: dark) {
  svg { --page: #0d1117; --ink: #f0f6fc; --quiet: #9198a1; --line: #3d444d; --own: #4493f8; --peer: #f0883e }
}
text { font: 13px system-ui, sans-serif; fill: var(--ink) }
.title { font-size: 17px; font-weight: 600 }
.quiet { font-size: 11px; fill: var(--quiet) }
.page { fill: var(--page) }
.scale { stroke: var(--line) }
.range { stroke: var(--own); stroke-width: 3; stroke-linecap: round; opacity: 0.45 }
.own { fill: var(--own) }
.peer { fill: var(--page); stroke: var(--peer); stroke-width: 2.5 }
.right { text-anchor: end }
";

/// Draws a report into a file.
///
/// # Errors
/// The file cannot be written.
pub fn write(report: &Report, path: &Path) -> Result<()> {
    svg::save(path, &draw(report)).with_context(|| format!("cannot draw {}", path.display()))
}

/// Rows of one unit that follow one another.
struct Group<'a> {
    rows: Vec<&'a Row>,
}

impl Group<'_> {
    /// The end of the scale: the largest number shown, and never nothing.
    fn largest(&self) -> f64 {
        let values = self.rows.iter().flat_map(|row| [Some(row.max), row.peer_median]);
        values.flatten().fold(f64::MIN_POSITIVE, f64::max)
    }

    fn height(&self) -> f64 {
        self.rows.iter().fold(GROUP_HEIGHT, |height, _| height + ROW_HEIGHT)
    }
}

fn groups(rows: &[Row]) -> Vec<Group<'_>> {
    let alike = |left: &Row, right: &Row| left.unit == right.unit && left.better == right.better;
    rows.chunk_by(alike).map(|rows| Group { rows: rows.iter().collect() }).collect()
}

fn draw(report: &Report) -> Document {
    let groups = groups(&report.results);
    let height = groups.iter().map(Group::height).sum::<f64>() + HEADER_HEIGHT + FOOTER_HEIGHT;
    let mut document = Document::new()
        .set("viewBox", (0.0, 0.0, WIDTH, height))
        .set("width", WIDTH)
        .set("role", "img")
        .add(Style::new(STYLE))
        .add(Rectangle::new().set("width", WIDTH).set("height", height).set("class", "page"))
        .add(text(MARGIN, 28.0, "title", &report.benchmark))
        .add(text(MARGIN, 48.0, "quiet", &shortened(&report.host.to_string())));
    let mut top = HEADER_HEIGHT;
    for group in &groups {
        document = draw_group(document, group, top);
        top += group.height();
    }
    draw_legend(document, report, top + FOOTER_HEIGHT / 2.0)
}

fn draw_group(mut document: Document, group: &Group<'_>, top: f64) -> Document {
    let Some(first) = group.rows.first() else { return document };
    let largest = group.largest();
    let place = |value: f64| SCALE_START + (SCALE_END - SCALE_START) * (value / largest);
    let caption = format!("{}, {} is better", first.unit, first.better.name());
    document = document
        .add(text(SCALE_START, top + 16.0, "quiet", "0"))
        .add(text(MARGIN, top + 16.0, "quiet", &caption))
        .add(text(SCALE_END, top + 16.0, "quiet right", &number(largest)));
    let mut middle = top + GROUP_HEIGHT - 4.0;
    for row in &group.rows {
        document = document
            .add(text(MARGIN, middle + 4.0, "name", &row.name))
            .add(line(SCALE_START, SCALE_END, middle, "scale"))
            .add(line(place(row.min), place(row.max), middle, "range"))
            .add(text(WIDTH - MARGIN, middle + 4.0, "right", &numbers(row)));
        if let Some(peer) = row.peer_median {
            document = document.add(dot(place(peer), middle, "peer"));
        }
        document = document.add(dot(place(row.median), middle, "own"));
        middle += ROW_HEIGHT;
    }
    document
}

fn draw_legend(document: Document, report: &Report, middle: f64) -> Document {
    let document = document.add(dot(MARGIN + DOT_RADIUS, middle, "own")).add(text(
        MARGIN + 18.0,
        middle + 4.0,
        "quiet",
        "median; the line is min to max",
    ));
    if report.results.iter().all(|row| row.peer_median.is_none()) {
        return document;
    }
    document.add(dot(240.0, middle, "peer")).add(text(
        252.0,
        middle + 4.0,
        "quiet",
        "median of the peer; (ratio to it)",
    ))
}

fn numbers(row: &Row) -> String {
    let ratio = row.ratio.map_or_else(String::new, |ratio| format!(" ({ratio:.2})"));
    format!("{}{ratio}", number(row.median))
}

fn shortened(text: &str) -> String {
    text.chars().take(HOST_CHARS).collect()
}

fn text(x: f64, y: f64, class: &str, content: &str) -> Text {
    Text::new(content).set("x", x).set("y", y).set("class", class)
}

fn line(from: f64, to: f64, y: f64, class: &str) -> Line {
    Line::new().set("x1", from).set("x2", to).set("y1", y).set("y2", y).set("class", class)
}

fn dot(x: f64, y: f64, class: &str) -> Circle {
    Circle::new().set("cx", x).set("cy", y).set("r", DOT_RADIUS).set("class", class)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;

    #[test]
    fn every_metric_is_drawn_with_its_unit_and_both_colour_schemes() {
        let report = example();
        let drawn = draw(&report).to_string();
        for row in &report.results {
            let name = row.name.replace('>', "&gt;");
            assert!(drawn.contains(&name) && drawn.contains(&row.unit), "{drawn}");
        }
        assert!(drawn.contains("prefers-color-scheme: dark"));
        assert_eq!(drawn.matches("class=\"peer\"").count(), 2, "one in the plot, one below it");
    }

    #[test]
    fn metrics_of_another_unit_have_their_own_scale() {
        let report = example();
        let groups = groups(&report.results);
        assert_eq!(groups.iter().map(Group::largest).collect::<Vec<_>>(), [4.0, 1060.4]);
    }

    #[test]
    fn zeroes_only_are_drawn_as_well() {
        let mut report = example();
        report.results.truncate(1);
        let row = &mut report.results[0];
        (row.min, row.median, row.p99, row.max, row.peer_median) = (0.0, 0.0, 0.0, 0.0, None);
        assert!(!draw(&report).to_string().contains("NaN"));
    }

    #[test]
    fn the_file_is_written_or_its_name_is_in_the_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("boot.svg");
        write(&example(), &path).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("<svg"));
        let error = write(&example(), &directory.path().join("no/boot.svg")).unwrap_err();
        assert!(error.to_string().contains("no/boot.svg"), "{error}");
    }
}
