// Runs javascript/accel.js on a page of stubs, and prints what becomes of the texts of the class accel-text.
// node translate.js ACCEL_JS < {"words": {key: translation}, "texts": [...]}
const fs = require("fs");
const { words, texts } = JSON.parse(fs.readFileSync(0, "utf-8"));
const shown = texts.map((text) => ({ dataset: {}, textContent: text, closest: () => null }));
const page = {
    querySelector: (css) => (css === "#accel_status_tab" ? {} : null),
    querySelectorAll: (css) => (css.startsWith(".accel-text") ? shown : []),
};
globalThis.window = globalThis;
globalThis.localization = words;
globalThis.document = { hidden: true, addEventListener: () => {} };
globalThis.setTimeout = () => {};
globalThis.gradioApp = () => page;
globalThis.onUiTabChange = globalThis.onAfterUiUpdate = () => {};
globalThis.onUiLoaded = (loaded) => loaded();
new Function(fs.readFileSync(process.argv[2], "utf-8"))();
console.log(JSON.stringify(shown.map((element) => element.textContent)));
