// Keeps the status line above the pictures fresh: presses a hidden button of the Acceleration tab (so that the WebUI's own
// login covers it) and copies what it answers. Does nothing while the page is hidden.
(function () {
    const PERIOD_MS = 4000;

    function copy() {
        const line = gradioApp().querySelector("#accel_line .accel-line");
        if (!line) return;
        for (const target of gradioApp().querySelectorAll(".accel-status .accel-line")) {
            if (target.innerHTML !== line.innerHTML) target.innerHTML = line.innerHTML;
        }
    }

    onUiLoaded(function () {
        const line = gradioApp().querySelector("#accel_line");
        const poll = gradioApp().querySelector("#accel_poll");
        if (!line || !poll) return;
        new MutationObserver(copy).observe(line, { childList: true, subtree: true, characterData: true });
        setInterval(function () {
            if (!document.hidden) poll.click();
        }, PERIOD_MS);
    });
})();
