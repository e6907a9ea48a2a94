//! Inputs and outputs of every kind and with every constraint: images, flexible shapes, defaults, halves, ranks, functions.
//! `fixtures/make_features.py` makes the models; what they should answer is computed here.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod common;

use std::num::NonZeroUsize;

use common::{array, load, predict, report, repository};
use coreml_engine::{Elements, ImageRef, Input, LoadOptions, Model, Output, PixelFormat, Session};
use half::f16;

const ONE: NonZeroUsize = NonZeroUsize::MIN;

fn model(name: &str) -> Model {
    load(&repository(&format!("coreml-engine/tests/fixtures/features/{name}.mlmodel")))
}

fn session(name: &str) -> Session {
    model(name).session(ONE)
}

fn image(format: PixelFormat, width: usize, height: usize, row_bytes: usize, pixels: &[u8]) -> Input<'_> {
    Input::Image(ImageRef { format, width, height, row_bytes, pixels })
}

/// The value of a channel (blue, green, red, alpha) of a pixel.
fn shade(channel: usize, y: usize, x: usize) -> u8 {
    u8::try_from((channel * 67 + y * 31 + x * 101) % 256).unwrap()
}

/// Pixels of blue, green, red and alpha, with rows that are longer than they need be.
fn bgra(width: usize, height: usize) -> (usize, Vec<u8>) {
    let row_bytes = width * 4 + 5;
    let mut pixels = vec![0xee; row_bytes * height];
    for y in 0..height {
        for x in 0..width {
            for channel in 0..4 {
                pixels[y * row_bytes + x * 4 + channel] = shade(channel, y, x);
            }
        }
    }
    (row_bytes, pixels)
}

/// Planes in that order of channels, each element changed.
fn planes(order: &[usize], width: usize, height: usize, f: impl Fn(usize, f32) -> f32) -> Vec<f32> {
    let mut out = Vec::new();
    for (plane, &channel) in order.iter().enumerate() {
        for y in 0..height {
            out.extend((0..width).map(|x| f(plane, f32::from(shade(channel, y, x)))));
        }
    }
    out
}

#[test]
fn colours_come_in_the_order_of_the_layout_and_are_scaled_by_the_program() {
    let (row_bytes, pixels) = bgra(3, 2);
    for (name, order) in [("image_rgb", [2, 1, 0]), ("image_bgr", [0, 1, 2])] {
        let given = image(PixelFormat::Bgra8, 3, 2, row_bytes, &pixels);
        let (shape, found) = predict(&mut session(name), &[("x", given)], "y");
        // Biases are in the order of the layout.
        let expected = planes(&order, 3, 2, |plane, x| x * 0.5 + [10.0, 20.0, 30.0][plane]);
        assert_eq!((shape, found), (vec![1, 3, 2, 3], expected), "{name}");
    }
}

#[test]
fn grey_comes_as_bytes_or_as_halves() {
    let bytes: Vec<u8> = (0..6).map(|i| shade(0, i / 3, i % 3)).collect();
    let given = image(PixelFormat::Gray8, 3, 2, 3, &bytes);
    let (_, found) = predict(&mut session("image_gray"), &[("x", given)], "y");
    assert_eq!(found, planes(&[0], 3, 2, |_, x| x * 0.5 + 5.0));

    let values = [0.25_f32, -3.5, 1000.0, 0.0, 65504.0, 2.0];
    let halves: Vec<u8> = values.iter().flat_map(|&x| f16::from_f32(x).to_ne_bytes()).collect();
    let given = image(PixelFormat::Gray16F, 3, 2, 6, &halves);
    let (_, found) = predict(&mut session("image_gray16"), &[("x", given)], "y");
    let expected: Vec<f32> = values.iter().map(|x| f16::from_f32(x * 0.5 + 5.0).to_f32()).collect();
    assert_eq!(found, expected);
}

/// 1.5 x - 20, as an image.
fn to_image(name: &str, given: Input<'_>) -> (PixelFormat, usize, usize, Vec<u8>) {
    let outputs = session(name).predict(&[("x", given)], None, &[]);
    match outputs.unwrap_or_else(|error| panic!("{}", report(&error))).remove(0).1 {
        Output::Image { format, width, height, pixels } => (format, width, height, pixels),
        other => panic!("{other:?}"),
    }
}

#[test]
fn images_that_come_out_are_clamped_and_lie_as_those_that_go_in() {
    let change = |x: f32| (x * 1.5 - 20.0).clamp(0.0, 255.0);
    let (row_bytes, pixels) = bgra(3, 2);
    for name in ["image_rgb_to_image", "image_bgr_to_image"] {
        let given = image(PixelFormat::Bgra8, 3, 2, row_bytes, &pixels);
        let (format, width, height, found) = to_image(name, given);
        assert_eq!((format, width, height), (PixelFormat::Bgra8, 3, 2));
        for (i, pixel) in found.as_chunks::<4>().0.iter().enumerate() {
            for (channel, &value) in pixel[..3].iter().enumerate() {
                let expected = change(f32::from(shade(channel, i / 3, i % 3)));
                assert!((f32::from(value) - expected).abs() <= 0.5, "{name}: {value} against {expected}");
            }
            assert_eq!(pixel[3], 255, "opaque");
        }
    }
    let bytes: Vec<u8> = (0..6).map(|i| shade(0, i / 3, i % 3)).collect();
    let (format, _, _, found) = to_image("image_gray_to_image", image(PixelFormat::Gray8, 3, 2, 3, &bytes));
    assert_eq!(format, PixelFormat::Gray8);
    assert!(found.iter().zip(&bytes).all(|(&y, &x)| (f32::from(y) - change(f32::from(x))).abs() <= 0.5));

    let pixels = [0, 1, 2, 253, 254, 255];
    let (format, width, height, found) =
        to_image("image_gray_uint8", image(PixelFormat::Gray8, 3, 2, 3, &pixels));
    let expected = vec![0, 253, 1, 254, 2, 255];
    assert_eq!((format, width, height, found), (PixelFormat::Gray8, 2, 3, expected), "transposed as uint8");

    let values = [0.25_f32, -3.5, 1000.0, 0.0, 400.0, 2.0];
    let halves: Vec<u8> = values.iter().flat_map(|&x| f16::from_f32(x).to_ne_bytes()).collect();
    let (format, _, _, found) =
        to_image("image_gray16_to_image", image(PixelFormat::Gray16F, 3, 2, 6, &halves));
    let expected: Vec<u8> =
        values.iter().flat_map(|&x| f16::from_f32(x * 1.5 - 20.0).to_ne_bytes()).collect();
    assert_eq!((format, found), (PixelFormat::Gray16F, expected), "halves are not clamped");
}

#[test]
fn images_of_the_sizes_that_the_model_lists_are_taken_and_no_others() {
    let sizes = [
        ("image_enumerated", &[(3, 2), (5, 4)][..], &[(5, 2), (3, 4), (6, 4)][..]),
        ("image_range", &[(3, 2), (5, 4), (6, 2), (4, 3)], &[(2, 2), (7, 2), (3, 5), (3, 1)]),
    ];
    for (name, good, bad) in sizes {
        let mut session = session(name);
        for &(width, height) in good {
            let (row_bytes, pixels) = bgra(width, height);
            let given = image(PixelFormat::Bgra8, width, height, row_bytes, &pixels);
            let (_, found) = predict(&mut session, &[("x", given)], "y");
            let sums: Vec<f32> = planes(&[2, 1, 0], width, height, |_, x| x)
                .chunks(width * height)
                .map(|plane| plane.iter().sum())
                .collect();
            assert_eq!(found, sums, "{name} {width}x{height}");
        }
        for &(width, height) in bad {
            let (row_bytes, pixels) = bgra(width, height);
            let given = image(PixelFormat::Bgra8, width, height, row_bytes, &pixels);
            let error = report(&session.predict(&[("x", given)], None, &[]).unwrap_err());
            assert!(error.contains(&format!("found image Bgra8 {width}x{height}")), "{error}");
            let expected = if name == "image_range" { "3 to 6 x 2 to 4" } else { "3x2, 5x4" };
            assert!(error.contains(expected), "{error}");
        }
    }
}

#[test]
fn images_of_the_wrong_kind_or_with_too_few_bytes_are_refused() {
    let (row_bytes, pixels) = bgra(3, 2);
    for (given, wanted) in [
        (image(PixelFormat::Gray8, 3, 2, 3, &pixels), "found image Gray8 3x2"),
        (image(PixelFormat::Bgra8, 2, 3, row_bytes, &pixels), "found image Bgra8 2x3"),
        (image(PixelFormat::Bgra8, 3, 2, row_bytes, &pixels[..20]), "with 20 bytes"),
        (image(PixelFormat::Bgra8, 3, 2, 4, &pixels), "4 a row"),
        (image(PixelFormat::Bgra8, 3, 2, usize::MAX, &pixels), "found image Bgra8 3x2"),
    ] {
        let error = report(&session("image_rgb").predict(&[("x", given)], None, &[]).unwrap_err());
        assert!(error.contains("expected image rgb 3x2") && error.contains(wanted), "{error}");
    }
}

#[test]
fn tensors_of_the_shapes_that_the_model_lists_are_taken_and_no_others() {
    let cases = [
        ("shape_enumerated", &[[2, 3], [1, 4], [5, 3]][..], &[[2, 4], [1, 3], [3, 3]][..]),
        ("shape_range", &[[2, 3], [1, 2], [5, 4]], &[[6, 3], [2, 5], [0, 3], [2, 1]]),
        ("shape_unbounded", &[[2, 3], [1, 2], [50, 40]], &[[0, 3], [2, 1]]),
    ];
    for (name, good, bad) in cases {
        let mut session = session(name);
        for shape in good {
            let data: Vec<f32> = (0..shape[0] * shape[1]).map(|i| i as f32 * 0.5 - 3.0).collect();
            let expected: Vec<f32> = data
                .chunks(shape[1])
                .flat_map(|row| {
                    let mean = row.iter().sum::<f32>() / row.len() as f32;
                    row.iter().map(move |x| x * 2.0 + mean)
                })
                .collect();
            let data = Elements::Float32(data);
            let (found_shape, found) = predict(&mut session, &[("x", array(shape, &data))], "y");
            assert_eq!(found_shape, shape, "{name}");
            let off = common::difference(&found, &expected);
            assert!(off < 1e-4, "{name} {shape:?}: off by {off}");
        }
        for shape in bad {
            let data = Elements::Float32(vec![0.0; shape[0] * shape[1]]);
            let error = session.predict(&[("x", array(shape, &data))], None, &[]).unwrap_err();
            assert!(
                report(&error).contains(&format!("found tensor float32 {shape:?}")),
                "{}",
                report(&error)
            );
        }
    }
}

#[test]
fn an_input_that_is_left_out_has_its_default() {
    let mut session = session("optional");
    let x = Elements::Float32(vec![1.0, 2.0, 3.0]);
    assert_eq!(predict(&mut session, &[("x", array(&[3], &x))], "y").1, [3.5, 4.5, 5.5]);
    let bias = Elements::Float32(vec![10.0, 0.0, -3.0]);
    let inputs = [("x", array(&[3], &x)), ("bias", array(&[3], &bias))];
    assert_eq!(predict(&mut session, &inputs, "y").1, [11.0, 2.0, 0.0]);
    let error = session.predict(&[("bias", array(&[3], &bias))], None, &[]).unwrap_err();
    assert!(report(&error).contains("`x` is missing"), "{}", report(&error));
}

#[test]
fn halves_go_in_and_come_out() {
    let x = Elements::Float16([0.1, -2.0, 0.333, 20000.0].map(f16::from_f32).to_vec());
    let outputs = session("float16").predict(&[("x", array(&[4], &x))], None, &[]).unwrap();
    let Output::Array(found) = &outputs[0].1 else { panic!("{outputs:?}") };
    // The product of two halves is exact in float32, and rounded once; 60000 is 59 992 or 60 000 in halves.
    let Elements::Float16(x) = &x else { unreachable!() };
    let expected = x.iter().map(|x| f16::from_f32(x.to_f32() * 3.0)).collect();
    assert_eq!(found.elements, Elements::Float16(expected));
    let floats = Elements::Float32(vec![0.0; 4]);
    assert!(session("float16").predict(&[("x", array(&[4], &floats))], None, &[]).is_err());
}

#[test]
fn ranks_reach_from_none_to_five() {
    let x = Elements::Float32((0..8_u8).map(f32::from).collect());
    let (shape, found) = predict(&mut session("rank5"), &[("x", array(&[1, 2, 1, 2, 2], &x))], "y");
    assert_eq!(shape, [2, 2, 1, 2, 1]);
    assert_eq!(found, [1.0, 5.0, 3.0, 7.0, 2.0, 6.0, 4.0, 8.0]);

    let x = Elements::Float32(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.5]);
    let (shape, found) = predict(&mut session("rank0_output"), &[("x", array(&[2, 3], &x))], "y");
    assert_eq!((shape, found), (vec![1], vec![21.5]), "a multi-array has a dimension");
}

#[test]
fn functions_share_a_matrix_and_the_default_one_is_loaded() {
    let path = repository("coreml-engine/tests/fixtures/features/functions.mlpackage");
    // The matrix is (8 i + j - 32) / 8, so that a vector of ones gives 8 i + 3.5 - 32.
    let x = Elements::Float32(vec![1.0; 8]);
    let expected = |bias: f32| (0..8_u8).map(|i| f32::from(i) * 8.0 + 3.5 - 32.0 + bias).collect::<Vec<_>>();
    let answer = |model: &Model| predict(&mut model.session(ONE), &[("x", array(&[1, 8], &x))], "y").1;
    let default = load(&path);
    assert_eq!(default.description().function, "minus_two");
    assert_eq!(default.description().functions, ["plus_one", "minus_two"]);
    assert_eq!(answer(&default), expected(-2.0));
    for (function, bias) in [("plus_one", 1.0), ("minus_two", -2.0)] {
        let model = Model::load(&path, &LoadOptions::default().function(function)).unwrap();
        assert_eq!((answer(&model), model.description().function.as_str()), (expected(bias), function));
    }
    let error = Model::load(&path, &LoadOptions::default().function("main")).unwrap_err();
    assert!(
        report(&error).contains("has no function `main`; it has minus_two, plus_one"),
        "{}",
        report(&error)
    );
}
