//! Aligned columns.

use super::{Report, Row};

const HEADING: [&str; 10] =
    ["name", "unit", "n", "min", "median", "p99", "max", "peer median", "ratio", "better"];
/// Names and units are read from the left, numbers are compared at their right.
const LEFT_ALIGNED: [bool; 10] =
    [true, true, false, false, false, false, false, false, false, true];
const GAP: &str = "  ";

/// The whole text, with a line feed at its end.
pub fn render(report: &Report) -> String {
    let mut lines = vec![HEADING.map(str::to_owned)];
    lines.extend(report.results.iter().map(cells));
    let widths: [usize; 10] = std::array::from_fn(|column| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)
    });
    let mut text = format!("{}: {}\n\n", report.benchmark, report.host);
    for (index, line) in lines.iter().enumerate() {
        text.push_str(&aligned(line, &widths));
        if index == 0 {
            text.push_str(&widths.map(|width| "-".repeat(width)).join(GAP));
            text.push('\n');
        }
    }
    if report.results.iter().any(|row| row.ratio.is_some()) {
        text.push_str("\nratio = median / peer median\n");
    }
    text
}

fn cells(row: &Row) -> [String; 10] {
    let optional = |value: Option<f64>| value.map_or_else(|| "-".into(), number);
    [
        row.name.clone(),
        row.unit.clone(),
        row.n.to_string(),
        number(row.min),
        number(row.median),
        number(row.p99),
        number(row.max),
        optional(row.peer_median),
        row.ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.3}")),
        row.better.name().into(),
    ]
}

fn aligned(cells: &[String; 10], widths: &[usize; 10]) -> String {
    let padded = cells.iter().zip(widths).zip(LEFT_ALIGNED).map(|((cell, &width), left)| {
        if left { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
    });
    let line = padded.collect::<Vec<_>>().join(GAP);
    format!("{}\n", line.trim_end())
}

/// About four digits that mean something.
pub fn number(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        size if size >= 1000.0 => 0,
        size if size >= 100.0 => 1,
        size if size >= 1.0 => 2,
        _ => 4,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;

    #[test]
    fn columns_are_aligned_and_say_which_direction_is_better() {
        let text = example().table();
        let lines: Vec<&str> = text.lines().skip(2).collect();
        let expected = [
            "name            unit   n   min  median   p99   max  peer median  ratio  better",
            "--------------  -----  -  ----  ------  ----  ----  -----------  -----  ------",
            "start -> ready  ms     3  1.00    2.00  3.00  3.00         4.00  0.500  lower",
            "read            MiB/s  1  1060    1060  1060  1060            -      -  higher",
            "",
            "ratio = median / peer median",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn the_heading_says_where_it_was_measured() {
        let text = example().table();
        assert!(text.starts_with("boot: Linux 6.12"), "{text}");
    }

    #[test]
    fn numbers_keep_about_four_digits() {
        let shown = [0.0, 0.14812, 1.0, 40.654, 459.96, 21690.4].map(number);
        assert_eq!(shown, ["0", "0.1481", "1.00", "40.65", "460.0", "21690"]);
    }
}
