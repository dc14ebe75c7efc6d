//! The ratios as a picture: an SVG with one line for each row that has a baseline.

use std::fmt::Write;

use crate::table::{Bar, Report, Row};

/// Pixels.
const LINE: f64 = 22.0;
const TOP: f64 = 50.0;
const NAMES: f64 = 560.0;
const SCALE: f64 = 420.0;
const MARGIN: f64 = 80.0;

const MET: &str = "#2e7d32";
const NOT_MET: &str = "#c62828";
const NOT_JUDGED: &str = "#757575";

/// Draws the ratios on a logarithmic scale. A line is from the lowest to the highest round, its dot is the median, and a
/// short upright line is the bar.
pub(crate) fn svg(report: &Report) -> String {
    // Nothing has no logarithm.
    let can_be_drawn = |row: &&Row| row.ratio().is_some_and(|ratio| ratio.min > 0.0 && ratio.max.is_finite());
    let rows: Vec<&Row> = report.rows.iter().filter(can_be_drawn).collect();
    let ratios = rows.iter().filter_map(|row| row.ratio());
    let (least, most) = ratios
        .fold((0.5, 2.0), |(least, most): (f64, f64), ratio| (least.min(ratio.min), most.max(ratio.max)));
    let (low, high) = (least.log10().floor(), most.log10().ceil());
    let at = |ratio: f64| NAMES + SCALE * (ratio.log10() - low) / (high - low);
    let (width, bottom) = (NAMES + SCALE + MARGIN, TOP + LINE * rows.len() as f64);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{:.0}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        bottom + LINE
    );
    text(
        &mut svg,
        10.0,
        20.0,
        "black",
        "tokend as a multiple of the baseline: median, lowest and highest round; | is the bar",
    );
    let mut decade = low;
    while decade <= high {
        let (x, ratio) = (at(10_f64.powf(decade)), 10_f64.powf(decade));
        line(&mut svg, (x, TOP - 5.0), (x, bottom), if decade == 0.0 { "black" } else { "#dddddd" }, 1.0);
        text(&mut svg, x - 8.0, TOP - 10.0, "black", &format!("{ratio}"));
        for between in [2.0, 5.0].into_iter().filter(|_| decade < high) {
            let x = at(between * ratio);
            line(&mut svg, (x, TOP - 5.0), (x, bottom), "#eeeeee", 1.0);
            text(&mut svg, x - 8.0, TOP - 10.0, "#757575", &format!("{}", between * ratio));
        }
        decade += 1.0;
    }
    for (number, row) in rows.iter().enumerate() {
        draw(&mut svg, row, TOP + LINE * (number as f64 + 0.5), at);
    }
    svg + "</svg>\n"
}

fn draw(svg: &mut String, row: &Row, y: f64, at: impl Fn(f64) -> f64) {
    let (Some(ratio), Some((name, _))) = (row.ratio(), &row.baseline) else { return };
    let colour = row.is_met().map_or(NOT_JUDGED, |met| if met { MET } else { NOT_MET });
    text(svg, 10.0, y + 4.0, "black", &format!("{} / {name}", row.what));
    line(svg, (at(ratio.min), y), (at(ratio.max), y), colour, 3.0);
    let _ = writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{colour}\"/>", at(ratio.median));
    if let Some(Bar::AtLeast(bar) | Bar::AtMost(bar)) = row.bar {
        line(svg, (at(bar), y - 9.0), (at(bar), y + 9.0), "black", 2.0);
    }
    text(svg, NAMES + SCALE + 10.0, y + 4.0, colour, &format!("{:.2} x", ratio.median));
}

fn line(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str, width: f64) {
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>"
    );
}

/// Writes a text without characters that XML reserves.
fn text(svg: &mut String, x: f64, y: f64, colour: &str, text: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"{colour}\">{text}</text>");
}
