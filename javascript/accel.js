// The pages of Acceleration: keeps the status lines fresh, fills the tab when it is opened, asks before it deletes, and
// translates text with values in it. Status comes from a gradio function, so that the WebUI's own login covers it; it is
// fetched, not clicked, because gradio shows an error for every click while the server is away.
(function () {
    const PERIOD_MS = 3000, LONGEST_MS = 60000;
    let raw = "", chosen = "", wait = PERIOD_MS, templates = null;

    // -- words: a key of localizations/*.json may hold {0}, {1}: the values in between, which are translated too

    function makeTemplates(words) {
        return Object.keys(words).filter((key) => /[a-z]{2}/i.test(key) && key.includes("{0}")).map((key) => {
            const order = [];
            const source = key.split(/\{(\d)\}/).map((part, i) => {
                if (i % 2 === 0) return part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
                order.push(part);
                return "(.+?)";
            }).join("");
            return { pattern: new RegExp("^" + source + "$", "s"), order, text: words[key] };
        });
    }

    function translate(text) {
        const words = window.localization || {};
        if (Object.hasOwn(words, text)) return words[text];
        templates = templates || makeTemplates(words);
        for (const { pattern, order, text: translated } of templates) {
            const found = pattern.exec(text);
            if (found) return translated.replace(/\{(\d)\}/g, (_, n) => translate(found[order.indexOf(n) + 1]));
        }
        const parts = text.split("; ");
        return parts.length > 1 ? parts.map(translate).join("; ") : text;
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
        const state = (html) => (/data-state='(\w+)'/.exec(html) || [])[1];
        const changed = raw && state(line) !== state(raw);
        raw = line;
        for (const place of gradioApp().querySelectorAll(".accel-status .accel-line")) place.outerHTML = line;
        translateAll(gradioApp());
        if (changed) refreshTab();
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
            } catch (e) { // the server is away: what is shown may be old
                wait = Math.min(2 * wait, LONGEST_MS);
            }
            document.documentElement.classList.toggle("accel-stale", wait > PERIOD_MS);
        }
        setTimeout(poll, wait);
    }

    // From among the settings of scripts to above the picture, where one looks while it is made.
    function moveLine(tab) {
        const line = gradioApp().querySelector("#accel_status_" + tab);
        const picture = gradioApp().querySelector(`#${tab}_gallery_container`);
        if (line && picture) picture.before(line);
    }

    // -- the tab

    function refreshTab() {
        const button = gradioApp().querySelector("#accel_refresh");
        if (button && button.offsetParent) button.click();
    }

    window.accelDelete = function (key, megabytes) {
        const question = translate("Delete this compiled code ({0}, {1} MB)? It is compiled again, which takes minutes, when a model needs it.");
        if (!confirm(question.replace("{0}", key.slice(0, 12)).replace("{1}", megabytes))) return;
        chosen = key;
        gradioApp().querySelector("#accel_delete").click();
    };
    window.accelChosen = () => [chosen];

    onUiLoaded(function () {
        if (!gradioApp().querySelector("#accel_status_tab")) return; // the extension's Python side did not load
        ["txt2img", "img2img"].forEach(moveLine);
        onUiTabChange(() => setTimeout(refreshTab, 0));
        onAfterUiUpdate(() => translateAll(gradioApp()));
        translateAll(gradioApp());
        poll();
    });
})();
