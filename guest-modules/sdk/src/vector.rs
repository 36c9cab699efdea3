//! Arithmetic on vectors of f32, at the speed of native code.
//!
//! The host counts a guest's loops to keep its deadline; a loop of one element a turn would spend most of its time there. These
//! loops do 64 elements a turn, as SIMD. An element's result does not depend on where it stands, so the bytes are the same
//! however a vector is cut.

/// Elements in a turn.
const TURN: usize = 64;

/// Applies `f` to each element of `y` and its partner in `x`: `y = f(y, x)`.
///
/// # Panics
/// The lengths differ.
#[inline(always)]
pub fn zip(y: &mut [f32], x: &[f32], f: impl Fn(f32, f32) -> f32) {
    assert_eq!(y.len(), x.len(), "vectors of different lengths");
    let mut turns = y.chunks_exact_mut(TURN);
    let mut partners = x.chunks_exact(TURN);
    for (y, x) in (&mut turns).zip(&mut partners) {
        // Arrays of a known length: the compiler unrolls the turn.
        if let (Ok(y), Ok(x)) = (<&mut [f32; TURN]>::try_from(y), <&[f32; TURN]>::try_from(x)) {
            for at in 0..TURN {
                y[at] = f(y[at], x[at]);
            }
        }
    }
    for (y, x) in turns.into_remainder().iter_mut().zip(partners.remainder()) {
        *y = f(*y, *x);
    }
}

/// `y += a * x`.
///
/// # Panics
/// The lengths differ.
pub fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    zip(y, x, |y, x| y + a * x);
}

/// `y += a * (x - y)`: moves `y` towards `x` by the part `a`.
///
/// # Panics
/// The lengths differ.
pub fn mix(a: f32, x: &[f32], y: &mut [f32]) {
    zip(y, x, |y, x| y + a * (x - y));
}

/// Applies `f` to each element of `y`.
#[inline(always)]
pub fn map(y: &mut [f32], f: impl Fn(f32) -> f32) {
    let mut turns = y.chunks_exact_mut(TURN);
    for y in &mut turns {
        if let Ok(y) = <&mut [f32; TURN]>::try_from(y) {
            for element in y {
                *element = f(*element);
            }
        }
    }
    for element in turns.into_remainder() {
        *element = f(*element);
    }
}

/// `y *= a`.
pub fn scale(a: f32, y: &mut [f32]) {
    map(y, |y| y * a);
}

/// `y += a`.
pub fn add(a: f32, y: &mut [f32]) {
    map(y, |y| y + a);
}

/// Adds up `f` of each element, in as many sums as a turn has elements, which are added from the first to the last.
#[inline(always)]
fn fold(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0_f32; TURN];
    let mut turns = x.chunks_exact(TURN);
    for x in &mut turns {
        if let Ok(x) = <&[f32; TURN]>::try_from(x) {
            for at in 0..TURN {
                sums[at] += f(x[at]);
            }
        }
    }
    for (sum, x) in sums.iter_mut().zip(turns.remainder()) {
        *sum += f(*x);
    }
    sums.iter().sum()
}

/// The sum of all elements. Its last bits depend on the order of the sums, which is always the same.
pub fn sum(x: &[f32]) -> f32 {
    fold(x, |x| x)
}

/// The sum of the squares of all elements.
pub fn sum_of_squares(x: &[f32]) -> f32 {
    fold(x, |x| x * x)
}

/// The sum of the squares of all elements in f64, where neither a large vector nor a small gradient loses anything: a norm's.
pub fn norm_squared(x: &[f32]) -> f64 {
    let mut sums = [0.0_f64; TURN / 4];
    let mut turns = x.chunks_exact(TURN / 4);
    let square = |x: f32| f64::from(x) * f64::from(x);
    for x in &mut turns {
        if let Ok(x) = <&[f32; TURN / 4]>::try_from(x) {
            for at in 0..TURN / 4 {
                sums[at] += square(x[at]);
            }
        }
    }
    for (sum, x) in sums.iter_mut().zip(turns.remainder()) {
        *sum += square(*x);
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_element_by_element() {
        for length in [0, 1, 63, 64, 65, 200] {
            let x: Vec<f32> = (0..length).map(|at| (at as f32).sin()).collect();
            let start: Vec<f32> = (0..length).map(|at| (at as f32).cos()).collect();
            let check = |seen: Vec<f32>, wanted: fn(f32, f32) -> f32| {
                for at in 0..length {
                    assert_eq!(seen[at].to_bits(), wanted(start[at], x[at]).to_bits());
                }
            };
            let mut y = start.clone();
            axpy(0.3, &x, &mut y);
            check(y, |y, x| y + 0.3 * x);
            let mut y = start.clone();
            mix(0.3, &x, &mut y);
            check(y, |y, x| y + 0.3 * (x - y));
            let mut y = start.clone();
            scale(0.3, &mut y);
            check(y, |y, _| y * 0.3);
            let mut y = start.clone();
            add(0.3, &mut y);
            check(y, |y, _| y + 0.3);
            let wanted: f64 = start.iter().map(|&y| f64::from(y)).sum();
            let squares: f64 = start.iter().map(|&y| f64::from(y) * f64::from(y)).sum();
            assert!((f64::from(sum(&start)) - wanted).abs() < 1e-4);
            assert!((f64::from(sum_of_squares(&start)) - squares).abs() < 1e-4);
            assert!((norm_squared(&start) - squares).abs() < 1e-9);
            assert!(length == 0 || norm_squared(&vec![1e-30; length]) > 0.0);
        }
    }
}
