"use strict";
// Numbers as pages show them: rg/pages/numbers.py in the browser, digit for digit. Goes in front of every script.

const MOSTLY = 0.75; // share of an image from which on nothing is said of what the model did not see
const NOTABLE = 0.05; // of a logit: a part that adds or takes less does not stand out

// A tie goes to the even digit, as in Python; toFixed rounds it up.
function fixed(value, digits) {
  const size = Math.abs(value), text = size.toFixed(digits);
  const isTie = (size * 2 ** (digits + 1)) % 2 === 1;
  const rounded = isTie && Number(text.at(-1)) % 2 ? (size - 10 ** -digits / 2).toFixed(digits) : text;
  return value < 0 ? `-${rounded}` : rounded;
}

// Two digits of a number below 0.1, with an exponent where Python writes one.
function twoDigits(size) {
  const [mantissa, exponent] = size.toExponential(1).split("e-");
  return Number(exponent) > 4 ? `${mantissa}e-${exponent.padStart(2, "0")}` : size.toPrecision(2);
}

function signed(value) {
  const size = Math.abs(value);
  let text = fixed(size, 2);
  if (size && !Number(text)) text = twoDigits(size);
  return ((value < 0 ? "-" : "+") + text).replaceAll("-", "−");
}

function percent(share, digits = 1) {
  let text = fixed(100 * share, digits);
  if (share > 0 && share < 1 && [0, 100].includes(Number(text))) {
    const least = 10 ** -digits;
    text = share < 0.5 ? `<\u00a0${least.toFixed(digits)}` : `>\u00a0${(100 - least).toFixed(digits)}`;
  }
  return `${text}\u00a0%`;
}

// Sentences with numbers as they are above, which do not break there.
function unbroken(sentences) {
  return sentences.replace(/([<>]) (?=\d)/g, "$1\u00a0").replace(/(\d) (?=%)/g, "$1\u00a0");
}
