// The server's answers as values, its refusals as sentences.

const KEY = "jemstone token";

export class Refusal extends Error {
  /** `message` is for people; `status` is HTTP's, 0 where no answer came. */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const hasToken = () => sessionStorage.getItem(KEY) !== null;
export const rememberToken = (token) => sessionStorage.setItem(KEY, token);

async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  const token = sessionStorage.getItem(KEY);
  if (token) headers.set("Authorization", `Bearer ${token}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server does not answer. Is it still running, and are you online?");
  }
  const said = await response.json().catch(() => null);
  if (response.ok && said) return said;
  throw new Refusal(response.status, sentence(response, said));
}

function sentence(response, said) {
  if (response.status === 401) return "The server asks for a token.";
  if (response.status === 429) {
    const seconds = Number(response.headers.get("Retry-After"));
    return `The server is busy. Try again ${seconds > 1 ? `in ${seconds} seconds` : "in a moment"}.`;
  }
  if (said?.message) return said.message.replace(/^input 0\b/, "The picture").replace(/\binput 0\b/g, "the picture");
  return `The server answered ${response.status} and gave no reason.`;
}

const post = (path, body, signal) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

export const getModel = () => call("/v1/model");

/** {prediction, seen}: `seen` is the address of the picture as the model gets it. */
export async function predict(blob, signal) {
  const { predictions, images } = await post("/v1/predict", { inputs: [await dataUrl(blob)], images: true }, signal);
  return { prediction: predictions[0], seen: images[0] };
}

export const sample = (labels, count, seed) => post("/v1/sample", { labels, count, seed });

export async function counterfactual(blob, label) {
  return post("/v1/counterfactual", { input: await dataUrl(blob), labels: [label] });
}

export const getInterface = () => call("/openapi.json");

function dataUrl(blob) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => done(reader.result));
    reader.addEventListener("error", () => failed(new Refusal(0, "The file cannot be read.")));
    reader.readAsDataURL(blob);
  });
}

export async function blobOf(url) {
  // Not by fetch: the page may connect to its own server only, and a data: address is another origin.
  const [head, data] = url.split(",");
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5).split(";")[0] });
}
