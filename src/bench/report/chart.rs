//! A drawing of lines over two axes, as SVG: legible in light and dark, and by those who see no colours, since lines differ in
//! dashes and dots as well.

use std::fmt::Write;

use super::scale::Scale;

/// All in pixels.
const WIDTH: f64 = 760.0;
const PLOT_HEIGHT: f64 = 300.0;
const LEFT: f64 = 88.0;
const RIGHT: f64 = 20.0;
/// The title, and below its further lines the names of bands.
const TITLE: f64 = 24.0;
const TITLE_ROW: f64 = 17.0;
const BAND_ROW: f64 = 22.0;
/// Below the plot: the marks and the axis' name.
const BELOW: f64 = 52.0;
const LEGEND_ROW: f64 = 20.0;
/// Of a letter of the legend, generously.
const LETTER: f64 = 7.2;
/// From a legend entry's line to its text, and from that to the next entry.
const LEGEND_LINE: f64 = 34.0;
const LEGEND_GAP: f64 = 18.0;

/// As many lines as can be told from each other.
pub(super) const MAX_LINES: usize = 8;

/// Inside a drawing, so that it is the same in the page and alone.
const STYLE: &str = "\
.q{font:12px system-ui,'Segoe UI',Helvetica,Arial,sans-serif}\
.q .bg{fill:#fff}.q text{fill:#1f2328}.q .dim{fill:#57606a}.q .t{font-size:14px;font-weight:600}\
.q .grid{stroke:#d8dee4;stroke-width:1}.q .axis{stroke:#57606a;stroke-width:1}\
.q .band{fill:#cf222e;fill-opacity:.10}.q .edge{stroke:#cf222e;stroke-width:1;stroke-dasharray:4 3}.q .bl{fill:#a40e26}\
.q .d{fill:#fff;stroke-width:2}.q .l{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}\
.q .c0{stroke:#0969da}.q .c1{stroke:#bc4c00}.q .c2{stroke:#1a7f37}.q .c3{stroke:#8250df}\
.q .c4{stroke:#bf3989}.q .c5{stroke:#7d4e00}.q .c6{stroke:#116879}.q .c7{stroke:#57606a}\
@media(prefers-color-scheme:dark){.q .bg,.q .d{fill:#0d1117}.q text{fill:#e6edf3}.q .dim{fill:#9198a1}\
.q .grid{stroke:#262c34}.q .axis{stroke:#9198a1}\
.q .band{fill:#ff7b72;fill-opacity:.14}.q .edge{stroke:#ff7b72}.q .bl{fill:#ffa198}\
.q .c0{stroke:#58a6ff}.q .c1{stroke:#f0883e}.q .c2{stroke:#3fb950}.q .c3{stroke:#bc8cff}\
.q .c4{stroke:#ff7bc5}.q .c5{stroke:#d4a72c}.q .c6{stroke:#56d4dd}.q .c7{stroke:#9198a1}}";

#[derive(Clone, Debug)]
pub(super) struct Axis {
    /// With its unit.
    pub(super) name: String,
    pub(super) scale: Scale,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    pub(super) name: String,
    /// Pieces with gaps between them.
    pub(super) pieces: Vec<Vec<(f64, f64)>>,
    /// Whether each point has a dot.
    pub(super) dots: bool,
    /// For what is not measured.
    pub(super) dotted: bool,
}

/// A stretch of the horizontal axis.
#[derive(Clone, Debug)]
pub(super) struct Band {
    pub(super) name: String,
    pub(super) from: f64,
    pub(super) to: f64,
}

#[derive(Clone, Debug)]
pub(super) struct Chart {
    pub(super) title: String,
    /// What it was measured with.
    pub(super) subtitle: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    /// [`MAX_LINES`] at most; further ones look like earlier ones.
    pub(super) lines: Vec<Line>,
    pub(super) bands: Vec<Band>,
}

impl Chart {
    /// The lines of the subtitle, each as long as there is room.
    fn subtitle(&self) -> Vec<String> {
        let letters = ((WIDTH - LEFT - RIGHT) / LETTER) as usize;
        let mut lines: Vec<String> = Vec::new();
        for word in self.subtitle.split_whitespace() {
            match lines.last_mut() {
                Some(line) if line.chars().count() + 1 + word.chars().count() <= letters => {
                    line.push(' ');
                    line.push_str(word);
                }
                _ => lines.push(word.to_owned()),
            }
        }
        lines
    }

    /// Upper edge of the plot.
    fn top(&self) -> f64 {
        TITLE + self.subtitle().len() as f64 * TITLE_ROW + BAND_ROW
    }

    fn x(&self, figure: f64) -> f64 {
        LEFT + self.x.scale.place(figure) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, figure: f64) -> f64 {
        self.top() + (1.0 - self.y.scale.place(figure)) * PLOT_HEIGHT
    }

    pub(super) fn svg(&self) -> String {
        let legend = Legend::of(&self.lines, self.top());
        let height = self.top() + PLOT_HEIGHT + BELOW + legend.rows as f64 * LEGEND_ROW + 8.0;
        let mut svg = format!(
            "<svg class=\"q\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" role=\"img\" aria-label=\"{title}\"><style>{STYLE}</style>\
             <rect class=\"bg\" width=\"{WIDTH}\" height=\"{height}\"/>\
             <text class=\"t\" x=\"{LEFT}\" y=\"20\">{title}</text>",
            title = escaped(&self.title)
        );
        for (row, line) in (1..).zip(self.subtitle()) {
            let y = 20.0 + f64::from(row) * TITLE_ROW;
            add(
                &mut svg,
                format_args!(
                    "<text class=\"dim\" x=\"{LEFT}\" y=\"{y}\">{}</text>",
                    escaped(&line)
                ),
            );
        }
        self.draw_bands(&mut svg);
        self.draw_axes(&mut svg);
        for (index, line) in self.lines.iter().enumerate() {
            self.draw_line(&mut svg, index, line);
        }
        legend.draw(&mut svg, &self.lines);
        svg.push_str("</svg>");
        svg
    }

    fn draw_bands(&self, svg: &mut String) {
        let top = self.top();
        let bottom = top + PLOT_HEIGHT;
        for band in &self.bands {
            let (from, to) = (self.x(band.from), self.x(band.to));
            add(
                svg,
                format_args!(
                    "<rect class=\"band\" x=\"{from:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{PLOT_HEIGHT}\"/>\
                 <line class=\"edge\" x1=\"{from:.1}\" x2=\"{from:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>\
                 <line class=\"edge\" x1=\"{to:.1}\" x2=\"{to:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>",
                    to - from
                ),
            );
            // Above the plot, where no line is, and within the drawing.
            let middle = (from + to) / 2.0;
            let half = band.name.chars().count() as f64 * LETTER / 2.0;
            let middle = middle.clamp(LEFT + half, WIDTH - RIGHT - half);
            add(
                svg,
                format_args!(
                    "<text class=\"bl\" x=\"{middle:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                    top - 7.0,
                    escaped(&band.name)
                ),
            );
        }
    }

    fn draw_axes(&self, svg: &mut String) {
        let top = self.top();
        let (right, bottom) = (WIDTH - RIGHT, top + PLOT_HEIGHT);
        for (figure, words) in self.y.scale.marks() {
            let y = self.y(figure);
            add(
                svg,
                format_args!(
                    "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"dim\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                    LEFT - 8.0,
                    y + 4.0,
                    escaped(&words)
                ),
            );
        }
        for (figure, words) in self.x.scale.marks() {
            let x = self.x(figure);
            add(
                svg,
                format_args!(
                    "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>\
                 <text class=\"dim\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                    bottom + 18.0,
                    escaped(&words)
                ),
            );
        }
        add(
            svg,
            format_args!(
                "<path class=\"axis\" fill=\"none\" d=\"M{LEFT} {top}V{bottom}H{right}\"/>\
             <text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
                (LEFT + right) / 2.0,
                bottom + 40.0,
                escaped(&self.x.name),
                top + PLOT_HEIGHT / 2.0,
                escaped(&self.y.name)
            ),
        );
    }

    fn draw_line(&self, svg: &mut String, index: usize, line: &Line) {
        let (class, dash) = (colour(index), dash(index, line.dotted));
        for piece in &line.pieces {
            let mut path = String::new();
            for (i, (x, y)) in piece.iter().enumerate() {
                let letter = if i == 0 { 'M' } else { 'L' };
                add(
                    &mut path,
                    format_args!("{letter}{:.1} {:.1}", self.x(*x), self.y(*y)),
                );
            }
            match (&piece[..], line.dots) {
                // A path of one point would not be seen.
                ([(x, y)], false) => add(
                    svg,
                    format_args!(
                        "<circle class=\"l {class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"1.5\"/>",
                        self.x(*x),
                        self.y(*y)
                    ),
                ),
                _ => add(
                    svg,
                    format_args!("<path class=\"l {class}\"{dash} d=\"{path}\"/>"),
                ),
            }
            if line.dots {
                for (x, y) in piece {
                    draw_dot(svg, index, self.x(*x), self.y(*y));
                }
            }
        }
    }
}

/// Where the entries of the legend are.
struct Legend {
    /// Left edge and row of each line's.
    places: Vec<(f64, usize)>,
    rows: usize,
    /// Upper edge of the plot.
    top: f64,
}

impl Legend {
    fn of(lines: &[Line], top: f64) -> Legend {
        let (mut x, mut row) = (LEFT, 0);
        let mut places = Vec::new();
        for line in lines {
            let width = LEGEND_LINE + line.name.chars().count() as f64 * LETTER + LEGEND_GAP;
            if x > LEFT && x + width > WIDTH {
                (x, row) = (LEFT, row + 1);
            }
            places.push((x, row));
            x += width;
        }
        Legend {
            top,
            rows: if lines.is_empty() { 0 } else { row + 1 },
            places,
        }
    }

    fn draw(&self, svg: &mut String, lines: &[Line]) {
        for (index, (line, (x, row))) in lines.iter().zip(&self.places).enumerate() {
            let y = self.top + PLOT_HEIGHT + BELOW + (*row as f64 + 0.5) * LEGEND_ROW;
            let (class, dash) = (colour(index), dash(index, line.dotted));
            let end = x + LEGEND_LINE - 8.0;
            add(
                svg,
                format_args!("<path class=\"l {class}\"{dash} d=\"M{x:.1} {y:.1}H{end:.1}\"/>"),
            );
            if line.dots {
                draw_dot(svg, index, (x + end) / 2.0, y);
            }
            add(
                svg,
                format_args!(
                    "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    x + LEGEND_LINE,
                    y + 4.0,
                    escaped(&line.name)
                ),
            );
        }
    }
}

fn colour(index: usize) -> String {
    format!("c{}", index % MAX_LINES)
}

fn dash(index: usize, dotted: bool) -> &'static str {
    match (dotted, index % MAX_LINES / 4) {
        (true, _) => " stroke-dasharray=\"2 5\"",
        (false, 0) => "",
        (false, _) => " stroke-dasharray=\"8 4\"",
    }
}

fn draw_dot(svg: &mut String, index: usize, x: f64, y: f64) {
    let class = colour(index);
    match index % 4 {
        0 => add(
            svg,
            format_args!("<circle class=\"d {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>"),
        ),
        1 => add(
            svg,
            format_args!(
                "<rect class=\"d {class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"7\" height=\"7\"/>",
                x - 3.5,
                y - 3.5
            ),
        ),
        2 => add(
            svg,
            format_args!(
                "<path class=\"d {class}\" d=\"M{x:.1} {:.1}l4.5 8h-9z\"/>",
                y - 5.0
            ),
        ),
        _ => add(
            svg,
            format_args!(
                "<path class=\"d {class}\" d=\"M{x:.1} {:.1}l4.5 5l-4.5 5l-4.5 -5z\"/>",
                y - 5.0
            ),
        ),
    }
}

fn add(text: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = text.write_fmt(what);
}

/// For text and attributes of HTML and SVG.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(lines: Vec<Line>) -> Chart {
        Chart {
            title: "a < b & \"c\"".to_owned(),
            subtitle: String::new(),
            x: Axis {
                name: "x (s)".to_owned(),
                scale: Scale::Linear { to: 10.0 },
            },
            y: Axis {
                name: "y (ms)".to_owned(),
                scale: Scale::Linear { to: 100.0 },
            },
            lines,
            bands: vec![Band {
                name: "the fault".to_owned(),
                from: 0.0,
                to: 0.1,
            }],
        }
    }

    fn line(name: &str) -> Line {
        Line {
            name: name.to_owned(),
            pieces: vec![vec![(0.0, 0.0), (10.0, 100.0)], vec![(5.0, 50.0)]],
            ..Line::default()
        }
    }

    #[test]
    fn figures_are_where_the_axes_say() {
        let chart = chart(vec![line("one")]);
        let (svg, top) = (chart.svg(), chart.top());
        let right = WIDTH - RIGHT;
        let corner = format!(
            "d=\"M{LEFT:.1} {:.1}L{right:.1} {top:.1}\"",
            top + PLOT_HEIGHT
        );
        assert!(svg.contains(&corner), "{svg}");
        let middle = (LEFT + right) / 2.0;
        assert!(
            svg.contains(&format!(
                "cx=\"{middle:.1}\" cy=\"{:.1}\"",
                top + PLOT_HEIGHT / 2.0
            )),
            "a single point"
        );
        for words in [
            "x (s)",
            "y (ms)",
            ">100<",
            ">the fault<",
            "a &lt; b &amp; &quot;c&quot;",
        ] {
            assert!(svg.contains(words), "{words}");
        }
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn entries_of_the_legend_do_not_overlap_and_stay_inside() {
        let names = [
            "short",
            "a name that is quite a bit longer than others",
            "loss 1%, delay 100ms, keel, acks all, fsync",
        ];
        let lines: Vec<Line> = names
            .iter()
            .cycle()
            .take(8)
            .map(|name| line(name))
            .collect();
        let legend = Legend::of(&lines, 60.0);
        assert!(legend.rows > 1);
        let mut ends = vec![0.0; legend.rows];
        for (line, (x, row)) in lines.iter().zip(&legend.places) {
            assert!(*x >= ends[*row]);
            let end = x + LEGEND_LINE + line.name.chars().count() as f64 * LETTER;
            assert!(end <= WIDTH, "{end}");
            ends[*row] = end;
        }
    }

    #[test]
    fn a_long_subtitle_is_broken_and_moves_the_plot_down() {
        let mut long = chart(Vec::new());
        let above = long.top();
        long.subtitle = "fourteen bytes ".repeat(20);
        let lines = long.subtitle();
        assert!(lines.len() > 2);
        let room = WIDTH - LEFT - RIGHT;
        assert!(
            lines
                .iter()
                .all(|line| line.chars().count() as f64 * LETTER <= room)
        );
        assert_eq!(long.top(), above + lines.len() as f64 * TITLE_ROW);
    }

    #[test]
    fn a_band_at_the_edge_has_its_name_inside() {
        let svg = chart(Vec::new()).svg();
        let half = "the fault".len() as f64 * LETTER / 2.0;
        assert!(svg.contains(&format!("x=\"{:.1}\"", LEFT + half)), "{svg}");
    }
}
