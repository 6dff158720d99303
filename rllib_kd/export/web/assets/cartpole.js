// CartPole as gymnasium computes it (Barto, Sutton and Anderson 1983), in 64-bit floats. `push`: change of the pole's
// angular velocity, rad/s.

function cartPoleStep(physics, state, action, push = 0) {
  let [x, xDot, theta, thetaDot] = state;
  thetaDot += push;
  const force = action === 1 ? physics.force_mag : -physics.force_mag;
  const cos = Math.cos(theta), sin = Math.sin(theta);
  const temp = (force + physics.polemass_length * (thetaDot * thetaDot) * sin) / physics.total_mass;
  const thetaAcc = (physics.gravity * sin - cos * temp) /
    (physics.length * (4 / 3 - (physics.masspole * (cos * cos)) / physics.total_mass));
  const xAcc = temp - (physics.polemass_length * thetaAcc * cos) / physics.total_mass;
  const tau = physics.tau;
  if (physics.kinematics_integrator === "euler") {
    x += tau * xDot; xDot += tau * xAcc; theta += tau * thetaDot; thetaDot += tau * thetaAcc;
  } else {
    xDot += tau * xAcc; x += tau * xDot; thetaDot += tau * thetaAcc; theta += tau * thetaDot;
  }
  return [x, xDot, theta, thetaDot];
}

function cartPoleHasFallen(physics, state) {
  return Math.abs(state[0]) > physics.x_threshold || Math.abs(state[2]) > physics.theta_threshold_radians;
}
