//! `random` ops: numbers that follow a distribution.
//!
//! Semantics: coremltools, `mil/ops/defs/iOS15/random.py`. An op with a seed gives the same numbers in every prediction; with the
//! seed -1, or none, others each time. Which numbers belong to a seed is nowhere defined: Core ML's are others than ours. Ours are
//! those of the ChaCha8 stream of the seed, so they are the same on every machine and in every version of this crate.

use std::hash::{BuildHasher, Hasher, RandomState};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rten_tensor::Tensor;
use rten_tensor::prelude::*;

use super::{Ints, Kernel, OpBuilder, OpDef, parameter};
use crate::error::{KernelError, OpError};
use crate::ir::Opset::Ios13;
use crate::value::one;

pub(crate) const OPS: &[OpDef] = &[
    OpDef::new("random_bernoulli", &[Ios13], bernoulli),
    OpDef::new("random_categorical", &[Ios13], categorical),
    OpDef::new("random_normal", &[Ios13], normal),
    OpDef::new("random_uniform", &[Ios13], uniform),
];

/// Where numbers come from.
#[derive(Clone, Copy)]
enum Seed {
    Fixed(u64),
    Fresh,
}

impl Seed {
    fn read(op: &mut OpBuilder<'_>) -> Result<Self, OpError> {
        Ok(match op.int_opt("seed")? {
            None | Some(-1) => Self::Fresh,
            Some(seed) => Self::Fixed(u64::from(seed.cast_unsigned())),
        })
    }

    fn stream(self) -> Stream {
        Stream(ChaCha8Rng::seed_from_u64(match self {
            Self::Fixed(seed) => seed,
            // Every such state has keys of its own, the first of which come from the system.
            Self::Fresh => RandomState::new().build_hasher().finish(),
        }))
    }
}

struct Stream(ChaCha8Rng);

impl Stream {
    /// From 0 (included) to 1 (excluded), a multiple of 2^-24.
    fn unit(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 * (1.0 / (1 << 24) as f32)
    }

    /// As [`Stream::unit`], a multiple of 2^-53.
    fn unit_f64(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Two numbers of mean 0 and deviation 1 (Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958).
    fn normals(&mut self) -> [f32; 2] {
        let radius = (-2.0 * (1.0 - self.unit_f64()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.unit_f64()).sin_cos();
        [(radius * cos) as f32, (radius * sin) as f32]
    }
}

/// A constant float that must be a number.
fn finite(op: &mut OpBuilder<'_>, name: &'static str, default: f32) -> Result<f32, OpError> {
    let x = op.float(name, default)?;
    if x.is_finite() { Ok(x) } else { Err(parameter(name, format!("expected a number, found {x}"))) }
}

/// Fills a tensor of the shape that the op is given.
fn filled(
    op: &mut OpBuilder<'_>,
    fill: impl Fn(&mut Stream, &mut [f32]) + Send + Sync + 'static,
) -> Result<Kernel, OpError> {
    let shape: Ints = op.ints_or_input("shape")?;
    let seed = Seed::read(op)?;
    Ok(Box::new(move |run| {
        let shape = run.ints(&shape)?.into_iter().map(|dim| {
            usize::try_from(dim).map_err(|_| KernelError::shape(format!("a dimension of {dim} in a shape")))
        });
        let mut tensor = run.zeros::<f32>(&shape.collect::<Result<Vec<_>, _>>()?)?;
        if let Some(data) = tensor.data_mut() {
            fill(&mut seed.stream(), data);
        }
        Ok(one(tensor))
    }))
}

fn bernoulli(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let prob = finite(op, "prob", 0.5)?;
    if !(0.0..=1.0).contains(&prob) {
        return Err(parameter("prob", format!("{prob} is no probability")));
    }
    filled(op, move |stream, data| {
        data.iter_mut().for_each(|x| *x = f32::from(u8::from(stream.unit() < prob)));
    })
}

fn normal(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let mean = finite(op, "mean", 0.0)?;
    let deviation = finite(op, "stddev", 1.0)?;
    if deviation < 0.0 {
        return Err(parameter("stddev", format!("{deviation} is negative")));
    }
    filled(op, move |stream, data| {
        for pair in data.chunks_mut(2) {
            pair.iter_mut().zip(stream.normals()).for_each(|(to, x)| *to = mean + deviation * x);
        }
    })
}

fn uniform(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let low = finite(op, "low", 0.0)?;
    let high = finite(op, "high", 1.0)?;
    if high < low {
        return Err(parameter("high", format!("{high} is less than `low`, {low}")));
    }
    // The sum may be rounded up to `high`, which is excluded.
    let most = if high > low { high.next_down() } else { low };
    let (from, span) = (f64::from(low), f64::from(high) - f64::from(low));
    filled(op, move |stream, data| {
        data.iter_mut().for_each(|x| *x = ((from + span * f64::from(stream.unit())) as f32).min(most));
    })
}

/// `size` indices of the last dimension for each row, with replacement.
fn categorical(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 1..=5)?;
    let logits = match op.string("mode", "logits")?.as_str() {
        "logits" => true,
        "probs" => false,
        other => return Err(parameter("mode", format!("no mode is called `{other}`"))),
    };
    let samples = op.int_opt("size")?.unwrap_or(1);
    let samples = usize::try_from(samples).ok().filter(|&n| n > 0);
    let samples =
        samples.ok_or_else(|| parameter("size", "expected a number of samples that is positive"))?;
    let seed = Seed::read(op)?;
    Ok(Box::new(move |run| {
        let view = run.f32(x.slot)?;
        let Some((&classes, lead)) = view.shape().split_last() else {
            return Err(KernelError::shape("a distribution of rank 0"));
        };
        let shape = [lead, &[samples]].concat();
        let count = run.check_size(&shape)?;
        run.check_size(&[classes])?;
        let dense = view.to_contiguous_in(run.pool());
        let mut stream = seed.stream();
        let mut out = run.buffer(&shape)?;
        let mut sums = Vec::with_capacity(classes);
        if count > 0 && classes == 0 {
            return Err(KernelError::value("a distribution of no classes"));
        }
        if count > 0 {
            for row in dense.data().chunks_exact(classes) {
                cumulate(row, logits, &mut sums)?;
                let total = sums.last().copied().unwrap_or(0.0);
                out.extend((0..samples).map(|_| {
                    let at = stream.unit_f64() * total;
                    // The product may be rounded up to the total; the last class with a weight is that where the sum ends.
                    let index = sums.partition_point(|&sum| sum <= at);
                    let last = sums.partition_point(|&sum| sum < total);
                    index.min(last) as f32
                }));
            }
        }
        Ok(one(Tensor::from_data(&shape, out)))
    }))
}

/// The sums of the weights of a row up to each class.
fn cumulate(row: &[f32], logits: bool, sums: &mut Vec<f64>) -> Result<(), KernelError> {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    sums.clear();
    let mut sum = 0.0;
    for &x in row {
        let weight = if logits { (f64::from(x) - f64::from(most)).exp() } else { f64::from(x) };
        if !(weight.is_finite() && weight >= 0.0) {
            return Err(KernelError::value(format!("a distribution in which a class has {x}")));
        }
        sum += weight;
        sums.push(sum);
    }
    if sum > 0.0 { Ok(()) } else { Err(KernelError::value("a distribution in which no class has a weight")) }
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::types::DType;

    const COUNT: i32 = 100_000;

    fn many(kind: &'static str) -> Case {
        Case::new(kind).ints("shape", &[100, 1000]).int("seed", 7)
    }

    fn moments(data: &[f32]) -> (f64, f64) {
        let n = data.len() as f64;
        let mean = data.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        (mean, data.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n)
    }

    /// The largest difference between the share of numbers up to a place and what the distribution says (Kolmogorov's).
    fn distance(mut data: Vec<f32>, distribution: impl Fn(f64) -> f64) -> f64 {
        data.sort_by(f32::total_cmp);
        let n = data.len() as f64;
        let off = |(i, &x): (usize, &f32)| (distribution(x.into()) - i as f64 / n).abs();
        data.iter().enumerate().map(off).fold(0.0, f64::max)
    }

    /// Exceeded by chance once in 10^8: sqrt(ln(2 * 10^8) / 2n).
    const CHANCE: f64 = 0.0098;

    #[test]
    fn uniform_numbers_are_uniform_between_their_limits() {
        let (shape, data) = many("random_uniform").float("low", -2.0).float("high", 6.0).f32();
        assert_eq!(shape, [100, 1000]);
        assert!(data.iter().all(|x| (-2.0..6.0).contains(x)));
        assert!(distance(data, |x| (x + 2.0) / 8.0) < CHANCE);
        assert!(many("random_uniform").f32().1.iter().all(|x| (0.0..1.0).contains(x)));
        assert!(
            many("random_uniform").float("low", 3.0).float("high", 3.0).f32().1.iter().all(|&x| x == 3.0)
        );
        // Between two neighbours there is only the lower.
        let high = 3.0_f32.next_up();
        assert!(
            many("random_uniform").float("low", 3.0).float("high", high).f32().1.iter().all(|&x| x == 3.0)
        );
    }

    #[test]
    fn normal_numbers_have_their_mean_deviation_and_quantiles() {
        let (_, data) = many("random_normal").float("mean", 2.0).float("stddev", 3.0).f32();
        let (mean, variance) = moments(&data);
        assert!((mean - 2.0).abs() < 0.06 && (variance - 9.0).abs() < 0.25, "{mean} {variance}");
        // Quantiles of the standard normal distribution.
        for (z, share) in
            [(-2.0, 0.022_750), (-1.0, 0.158_655), (0.0, 0.5), (0.674_49, 0.75), (3.0, 0.998_650)]
        {
            let found = data.iter().filter(|&&x| x <= 2.0 + 3.0 * z).count() as f64 / data.len() as f64;
            assert!((found - share).abs() < CHANCE, "{z}: {found} against {share}");
        }
        // Neighbours, which are made from the same pair, are independent.
        let products: f64 = data.chunks_exact(2).map(|p| f64::from((p[0] - 2.0) * (p[1] - 2.0)) / 9.0).sum();
        assert!((products / f64::from(COUNT / 2)).abs() < 0.03);
        assert!(
            many("random_normal").float("stddev", 0.0).float("mean", 1.5).f32().1.iter().all(|&x| x == 1.5)
        );
    }

    #[test]
    fn bernoulli_numbers_are_one_as_often_as_they_should() {
        for prob in [0.0, 0.2, 1.0] {
            let (_, data) = many("random_bernoulli").float("prob", prob).f32();
            assert!(data.iter().all(|&x| x == 0.0 || x == 1.0));
            assert!((moments(&data).0 - f64::from(prob)).abs() < CHANCE);
            assert!(prob > 0.0 || data.iter().all(|&x| x == 0.0));
            assert!(prob < 1.0 || data.iter().all(|&x| x == 1.0));
        }
        assert!((moments(&many("random_bernoulli").f32().1).0 - 0.5).abs() < CHANCE);
    }

    #[test]
    fn categories_come_as_often_as_their_weights_say() {
        let weights = [[0.1_f32, 0.0, 0.6, 0.3], [0.0, 0.5, 0.0, 0.5]];
        let flat = weights.concat();
        let logits: Vec<f32> = flat.iter().map(|p| p.ln() + 100.0).collect();
        for (mode, x) in [("probs", &flat), ("logits", &logits)] {
            let (shape, data) = Case::new("random_categorical")
                .input("x", &[2, 4], x)
                .string("mode", mode)
                .int("size", COUNT)
                .int("seed", 3)
                .f32();
            assert_eq!(shape, [2, COUNT as usize]);
            for (row, weights) in data.chunks_exact(COUNT as usize).zip(weights) {
                for (class, weight) in weights.into_iter().enumerate() {
                    let found = row.iter().filter(|&&x| x == class as f32).count();
                    let share = found as f32 / COUNT as f32;
                    assert!(
                        (share - weight).abs() < CHANCE as f32,
                        "{mode} {class}: {share} against {weight}"
                    );
                    assert!(weight > 0.0 || found == 0);
                }
            }
        }
        assert_eq!(Case::new("random_categorical").input("x", &[3], &[0.0; 3]).f32().0, [1]);
    }

    #[test]
    fn a_seed_gives_the_same_numbers_each_time_and_none_gives_others() {
        for kind in ["random_bernoulli", "random_normal", "random_uniform"] {
            let run = |seed: Option<i32>| {
                let case = Case::new(kind).ints("shape", &[2, 50]);
                seed.into_iter().fold(case, |case, seed| case.int("seed", seed)).f32().1
            };
            assert_eq!(run(Some(5)), run(Some(5)));
            assert_ne!(run(Some(5)), run(Some(6)));
            assert_ne!(run(Some(-1)), run(Some(-1)));
            assert_ne!(run(None), run(None));
        }
        // Pinned: a later version gives the same.
        let (_, data) = Case::new("random_uniform").ints("shape", &[3]).int("seed", 42).f32();
        assert_eq!(data, [0.224_080_74, 0.681_896_15, 0.146_386_2]);
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        let shape = |kind| Case::new(kind).ints("shape", &[2]);
        assert!(shape("random_bernoulli").float("prob", 1.5).error().contains("no probability"));
        assert!(shape("random_normal").float("stddev", -1.0).error().contains("negative"));
        assert!(shape("random_normal").float("mean", f32::NAN).error().contains("NaN"));
        assert!(shape("random_uniform").float("low", 2.0).error().contains("less than"));
        assert!(Case::new("random_uniform").ints("shape", &[2, -3]).error().contains("-3"));
        assert!(Case::new("random_uniform").ints("shape", &[1 << 30, 1 << 30]).error().contains("limit"));
        let of = |x: &[f32]| Case::new("random_categorical").input("x", &[x.len()], x);
        assert!(of(&[0.5, -0.5]).string("mode", "probs").error().contains("-0.5"));
        assert!(of(&[0.0, 0.0]).string("mode", "probs").error().contains("no class"));
        assert!(of(&[0.0, f32::NAN]).error().contains("NaN"));
        assert!(of(&[f32::INFINITY, 0.0]).error().contains("inf"));
        assert!(of(&[]).error().contains("no classes"));
        assert!(of(&[1.0]).int("size", 0).error().contains("positive"));
        assert!(of(&[1.0]).string("mode", "odds").error().contains("odds"));
        assert_eq!(
            Case::new("random_normal").ints("shape", &[3, 0]).run(&[DType::F32]).unwrap()[0].shape(),
            [3, 0]
        );
    }
}
