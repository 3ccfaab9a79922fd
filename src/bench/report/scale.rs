//! From figures to places on an axis, and the marks on it.

/// How an axis runs.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scale {
    /// From 0.
    Linear { to: f64 },
    /// Both above 0.
    Log { from: f64, to: f64 },
    /// Shares below 1, so that 90 %, 99 % and 99.9 % are equally far from each other.
    Nines { to: f64 },
    /// Figures 0, 1, 2 … stand for names.
    Names(Vec<String>),
}

impl Scale {
    /// Fits figures that are 0 or more, with a round end.
    pub(super) fn linear(figures: impl Iterator<Item = f64>) -> Scale {
        let most = figures.filter(|f| f.is_finite()).fold(0.0, f64::max);
        if most <= 0.0 {
            return Scale::Linear { to: 1.0 };
        }
        let step = step(most);
        Scale::Linear {
            to: (most / step).ceil() * step,
        }
    }

    /// Fits figures above 0; others are left out. Ends at powers of ten or 2 or 5 times those.
    pub(super) fn log(figures: impl Iterator<Item = f64>) -> Scale {
        let figures: Vec<f64> = figures.filter(|f| f.is_finite() && *f > 0.0).collect();
        let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
        let most = figures.iter().copied().fold(0.0, f64::max);
        if figures.is_empty() {
            return Scale::Log {
                from: 1.0,
                to: 10.0,
            };
        }
        let (from, to) = (round_down(least), round_down(most * 1.000_001));
        // The next mark above.
        let to = match to >= most {
            true => to,
            false => next_mark(to),
        };
        Scale::Log {
            from,
            to: if to > from { to } else { next_mark(from) },
        }
    }

    /// Where a figure is, from 0 to 1. What is beyond an end is at it.
    pub(super) fn place(&self, figure: f64) -> f64 {
        let place = match self {
            Scale::Linear { to } => figure / to,
            Scale::Log { from, to } => {
                let figure = figure.max(*from);
                (figure / from).ln() / (to / from).ln()
            }
            Scale::Nines { to } => nines(figure.min(*to)) / nines(*to),
            Scale::Names(names) => (figure + 0.5) / names.len().max(1) as f64,
        };
        place.clamp(0.0, 1.0)
    }

    /// Figures with the words beside them.
    pub(super) fn marks(&self) -> Vec<(f64, String)> {
        match self {
            Scale::Linear { to } => {
                let step = step(*to);
                let count = (to / step + 1e-6).floor() as u32;
                let figures = (0..=count).map(|i| f64::from(i) * step);
                figures.map(|figure| (figure, words(figure))).collect()
            }
            Scale::Log { from, to } => log_marks(*from, *to),
            Scale::Nines { to } => {
                let shares = [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999];
                let shares = shares.into_iter().filter(|share| *share <= *to + 1e-12);
                shares
                    .map(|share| (share, format!("{} %", words(100.0 * share))))
                    .collect()
            }
            Scale::Names(names) => (0u32..)
                .zip(names)
                .map(|(index, name)| (f64::from(index), name.clone()))
                .collect(),
        }
    }
}

fn nines(share: f64) -> f64 {
    -(1.0 - share).max(1e-9).log10()
}

/// About five steps of a round length up to `most`.
fn step(most: f64) -> f64 {
    let rough = most / 5.0;
    let unit = 10f64.powf(rough.log10().floor());
    let factor = rough / unit;
    // A hair below, for figures that are not exact.
    unit * match factor {
        f if f <= 1.000_01 => 1.0,
        f if f <= 2.000_01 => 2.0,
        f if f <= 5.000_01 => 5.0,
        _ => 10.0,
    }
}

/// The largest of 1, 2 and 5 times a power of ten that is not above.
fn round_down(figure: f64) -> f64 {
    let unit = 10f64.powf(figure.log10().floor());
    let factor = figure / unit;
    unit * match factor {
        f if f >= 5.0 => 5.0,
        f if f >= 2.0 => 2.0,
        _ => 1.0,
    }
}

fn next_mark(mark: f64) -> f64 {
    let unit = 10f64.powf((mark * 1.000_001).log10().floor());
    let factor = mark / unit;
    unit * match factor {
        f if f < 1.5 => 2.0,
        f if f < 3.0 => 5.0,
        _ => 10.0,
    }
}

/// All of 1, 2 and 5 times a power of ten, or only the powers where those are many.
fn log_marks(from: f64, to: f64) -> Vec<(f64, String)> {
    let mut all = vec![from];
    let mut mark = from;
    while mark < to * 0.999_999 && all.len() < 60 {
        mark = next_mark(mark);
        all.push(mark);
    }
    if all.len() > 8 {
        let is_power = |mark: &f64| {
            let unit = 10f64.powf((mark * 1.000_001).log10().floor());
            (mark / unit - 1.0).abs() < 1e-3
        };
        all.retain(is_power);
    }
    all.into_iter().map(|mark| (mark, words(mark))).collect()
}

/// A figure with as many digits as it needs, three at most behind the point.
pub(super) fn words(figure: f64) -> String {
    let digits = match figure.abs() {
        f if f >= 100.0 => 1,
        f if f >= 1.0 => 3,
        _ => 4,
    };
    let text = format!("{figure:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(scale: &Scale) -> Vec<String> {
        scale.marks().into_iter().map(|(_, words)| words).collect()
    }

    #[test]
    fn a_linear_axis_begins_at_0_and_ends_at_a_round_figure() {
        let scale = Scale::linear([3.0, 93.2].into_iter());
        assert_eq!(scale, Scale::Linear { to: 100.0 });
        assert_eq!(marks(&scale), ["0", "20", "40", "60", "80", "100"]);
        // One that ends where time does has no mark there.
        assert_eq!(marks(&Scale::Linear { to: 15.07 }), ["0", "5", "10", "15"]);
        assert_eq!(scale.place(25.0), 0.25);
        assert_eq!(scale.place(-1.0), 0.0);
        assert_eq!(scale.place(1e9), 1.0);
        assert_eq!(
            marks(&Scale::linear([0.0].into_iter())).last().unwrap(),
            "1"
        );
        assert_eq!(
            marks(&Scale::linear([0.3].into_iter())),
            ["0", "0.1", "0.2", "0.3"]
        );
    }

    #[test]
    fn a_logarithmic_axis_shows_every_decade_or_its_parts() {
        let scale = Scale::log([1.3, 180.0, 0.0, f64::NAN].into_iter());
        assert_eq!(
            scale,
            Scale::Log {
                from: 1.0,
                to: 200.0
            }
        );
        assert_eq!(
            marks(&scale),
            ["1", "2", "5", "10", "20", "50", "100", "200"]
        );
        assert!((scale.place(1.0)).abs() < 1e-9);
        assert!((scale.place(10.0) - 10f64.ln() / 200f64.ln()).abs() < 1e-9);
        // What is below its beginning is at it, 0 too.
        assert_eq!(scale.place(0.0), 0.0);
        let wide = Scale::log([0.05, 4000.0].into_iter());
        assert_eq!(marks(&wide), ["0.1", "1", "10", "100", "1000"]);
        assert_eq!(marks(&Scale::log([7.0].into_iter())), ["5", "10"]);
        assert_eq!(marks(&Scale::log([10.0].into_iter())), ["10", "20"]);
        assert_eq!(marks(&Scale::log([].into_iter())), ["1", "2", "5", "10"]);
    }

    #[test]
    fn nines_are_equally_far_from_each_other() {
        let scale = Scale::Nines { to: 0.999 };
        assert_eq!(marks(&scale), ["0 %", "50 %", "90 %", "99 %", "99.9 %"]);
        for (share, place) in [
            (0.0, 0.0),
            (0.9, 1.0 / 3.0),
            (0.99, 2.0 / 3.0),
            (0.999, 1.0),
            (1.0, 1.0),
        ] {
            assert!((scale.place(share) - place).abs() < 1e-9, "{share}");
        }
    }

    #[test]
    fn names_stand_in_the_middle_of_their_parts() {
        let scale = Scale::Names(vec!["a".into(), "b".into()]);
        assert_eq!((scale.place(0.0), scale.place(1.0)), (0.25, 0.75));
        assert_eq!(marks(&scale), ["a", "b"]);
    }

    #[test]
    fn figures_have_no_digits_too_many() {
        for (figure, text) in [
            (0.0, "0"),
            (0.25, "0.25"),
            (1.0, "1"),
            (99.9, "99.9"),
            (1234.56, "1234.6"),
            (1000.0, "1000"),
        ] {
            assert_eq!(words(figure), text);
        }
    }
}
