// Keeps the status lines fresh, fills the Acceleration tab when it is opened, asks before it deletes,
// and translates text that holds values. The status comes from a gradio function, so that the WebUI's
// login covers it. It is fetched, not clicked: gradio shows an error for every click while the server
// does not answer.
(function () {
    const PERIOD_MS = 3000, LONGEST_MS = 60000, ANSWER_MS = 8000;
    let raw = "", chosen = "", wait = PERIOD_MS, templates = null, asked = -ANSWER_MS;

    // -- translation: a key of localizations/*.json may hold {0}, {1} for values, which are translated too

    function makeTemplates(words) {
        const keys = Object.keys(words).filter((key) => /[a-z]{2}/i.test(key) && key.includes("{0}"));
        keys.sort((a, b) => b.length - a.length); // the most specific one first
        return keys.map((key) => {
            const order = [];
            const source = key.split(/\{(\d)\}/).map((part, i) => {
                if (i % 2 === 0) return part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
                order.push(part);
                return "(.+?)";
            }).join("");
            return { pattern: new RegExp("^" + source + "$", "s"), order, text: words[key] };
        });
    }

    function lookUp(text) {
        const words = window.localization || {};
        if (Object.hasOwn(words, text)) return words[text];
        const named = /^(\w+): (.+)$/s.exec(text); // a reason after the name of its backend
        const reason = named && translate(named[2]);
        if (named && reason !== named[2]) return `${named[1]}: ${reason}`;
        templates = templates || makeTemplates(words);
        for (const { pattern, order, text: translated } of templates) {
            const found = pattern.exec(text);
            if (!found) continue;
            return translated.replace(/\{(\d)\}/g, (_, n) => translate(found[order.indexOf(n) + 1]));
        }
        return undefined;
    }

    // Several reasons are joined by "; ", which a reason may hold too: the longest known one goes first,
    // but none goes beyond the name of the next backend.
    function translate(text) {
        const named = text.split(/; (?=[a-z]+: )/);
        if (named.length > 1) return named.map(translate).join("; ");
        const parts = text.split("; ");
        for (let n = parts.length; n > 0; n--) {
            const known = lookUp(parts.slice(0, n).join("; "));
            if (known === undefined) continue;
            return [known, ...(n < parts.length ? [translate(parts.slice(n).join("; "))] : [])].join("; ");
        }
        return parts.length > 1 ? `${parts[0]}; ${translate(parts.slice(1).join("; "))}` : text;
    }

    function translateAll(root) {
        for (const element of root.querySelectorAll(".accel-text:not([data-done])")) {
            element.dataset.done = "1";
            const text = element.textContent, translated = translate(text);
            if (translated !== text) {
                element.textContent = translated;
                element.title = text;
            }
        }
    }

    // -- the status lines

    function show(line) {
        if (line === raw) return;
        const state = (html) => `${/data-state='\w+'/.exec(html)} ${html.includes("<progress")}`;
        const changed = raw && state(line) !== state(raw);
        raw = line;
        for (const place of gradioApp().querySelectorAll(".accel-status .accel-line")) {
            const around = place.parentElement, opened = place.querySelector("details[open]");
            place.outerHTML = line;
            if (opened) around.querySelector("details")?.setAttribute("open", "");
        }
        translateAll(gradioApp());
        // refreshing takes away the answer to a button, which wants to be read
        if (changed) setTimeout(refreshTab, Math.max(0, asked + ANSWER_MS - performance.now()));
    }

    async function poll() {
        if (!document.hidden) {
            try {
                const answer = await fetch("./run/accel_status", {
                    method: "POST",
                    headers: { "Content-Type": "application/json" },
                    body: JSON.stringify({ data: [] }),
                });
                if (!answer.ok) throw new Error(answer.statusText);
                show((await answer.json()).data[0]);
                wait = PERIOD_MS;
            } catch (e) { // the server does not answer: what is shown may be old
                wait = Math.min(2 * wait, LONGEST_MS);
            }
            document.documentElement.classList.toggle("accel-stale", wait > PERIOD_MS);
        }
        setTimeout(poll, wait);
    }

    // Move the line from among the scripts' settings to above the picture.
    function moveLine(tab) {
        const line = gradioApp().querySelector("#accel_status_" + tab);
        const picture = gradioApp().querySelector(`#${tab}_gallery_container`);
        if (line && picture) picture.before(line);
    }

    // -- the settings: gradio makes the least number of an emptied field or of -5, which may switch something off

    // Return the answer to what an option cannot be, and what the option is instead.
    function correction({ value, min, max, dataset: { accelBefore } }) {
        if (value === "") return [translate("Empty; it stays {0}"), accelBefore];
        if (Number(value) < Number(min)) return [translate("The least is {0}"), min];
        if (Number(value) > Number(max)) return [translate("The most is {0}"), max];
        return Number.isInteger(Number(value)) ? null : [translate("Not a whole number; it stays {0}"), accelBefore];
    }

    function keepNumbers() {
        const field = (target) => target.matches?.("[id^=setting_accel_] input[type=number]") ? target : null;
        document.addEventListener("focus", ({ target }) => {
            if (!field(target)) return;
            target.dataset.accelBefore = target.value;
            target.closest("[id^=setting_accel_]").querySelector(".accel-kept")?.remove();
        }, true);
        document.addEventListener("blur", ({ target }) => { // before gradio hears of it
            if (!field(target) || !target.dataset.accelBefore) return;
            const [why, instead] = correction(target) || [];
            if (!why) return;
            target.value = instead;
            target.dispatchEvent(new Event("input", { bubbles: true }));
            const note = document.createElement("small");
            note.className = "accel-kept";
            note.setAttribute("role", "status");
            note.textContent = why.replace("{0}", target.value);
            target.closest("[id^=setting_accel_]").append(note);
        }, true);
    }

    // -- the tab

    function refreshTab() {
        const button = gradioApp().querySelector("#accel_refresh");
        if (button && button.offsetParent) button.click();
    }

    window.accelDelete = function ({ key, size, name }) {
        const question = translate("Delete the compiled code of {0} ({1}, {2} MiB)? When a model needs it, compiling it again takes minutes.");
        const values = [translate(name), key.slice(0, 12), size];
        if (!confirm(question.replace(/\{(\d)\}/g, (_, n) => values[n]))) return;
        chosen = key;
        gradioApp().querySelector("#accel_delete").click();
    };
    window.accelChosen = () => [chosen];

    // The clipboard itself is closed to pages that came without https from another machine.
    window.accelCopy = function (button) {
        const field = document.createElement("textarea");
        field.value = button.dataset.report;
        button.after(field);
        field.select();
        const copied = document.execCommand("copy");
        if (copied) field.remove(); // else the text is there, selected
        button.textContent = copied ? translate("Copied to the clipboard") : translate("Copy the text below");
    };

    onUiLoaded(function () {
        if (!gradioApp().querySelector("#accel_status_tab")) return; // the script did not load
        ["txt2img", "img2img"].forEach(moveLine);
        onUiTabChange(() => setTimeout(refreshTab, 0));
        document.addEventListener("click", ({ target }) => {
            if (target.closest?.("#accel_build, #accel_cancel, #accel_delete")) asked = performance.now();
        });
        onAfterUiUpdate(() => translateAll(gradioApp()));
        translateAll(gradioApp());
        keepNumbers();
        poll();
    });
})();
