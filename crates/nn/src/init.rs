//! Start values: zeros where the stream [is blank](RngStream::is_blank).

use specialformer_tensor::{Element, RngStream, Shape, Tensor};

/// Uniform in [−bound, bound).
pub fn uniform<E: Element>(shape: impl Into<Shape>, bound: f64, rng: &mut RngStream) -> Tensor<E> {
    if rng.is_blank() {
        return Tensor::zeros(shape);
    }
    Tensor::from_fn(shape, || E::from_f64(rng.uniform_in(-bound, bound)))
}

/// Normal with mean 0 and this standard deviation.
pub fn normal<E: Element>(shape: impl Into<Shape>, std: f64, rng: &mut RngStream) -> Tensor<E> {
    if rng.is_blank() {
        return Tensor::zeros(shape);
    }
    Tensor::from_fn(shape, || E::from_f64(std * rng.normal()))
}

/// PyTorch's default for linear layers: uniform in ±1/√fan_in (which is what
/// `kaiming_uniform_(a=√5)` comes to).
pub fn linear_default<E: Element>(
    shape: impl Into<Shape>,
    fan_in: usize,
    rng: &mut RngStream,
) -> Tensor<E> {
    uniform(shape, 1.0 / (fan_in.max(1) as f64).sqrt(), rng)
}

/// Xavier (Glorot & Bengio 2010): uniform in ±√(6/(fan_in + fan_out)).
pub fn xavier_uniform<E: Element>(
    shape: impl Into<Shape>,
    fan_in: usize,
    fan_out: usize,
    rng: &mut RngStream,
) -> Tensor<E> {
    uniform(shape, (6.0 / (fan_in + fan_out).max(1) as f64).sqrt(), rng)
}

/// Kaiming (He et al. 2015) for ReLU: normal with variance 2/fan_in.
pub fn kaiming_normal<E: Element>(
    shape: impl Into<Shape>,
    fan_in: usize,
    rng: &mut RngStream,
) -> Tensor<E> {
    normal(shape, (2.0 / fan_in.max(1) as f64).sqrt(), rng)
}
