// Last: everything above exists, so the first value may arrive.

watch("value", () => receive(props.value));
// a click on Stop is shown at once; the engine confirms at its next step
document.addEventListener("avl:stop", () => { if (view.state === "running" || view.state === "queued") { view.state = "stopping"; setStatus(); } });
root.dataset.state = "idle";
setStatus();
if (props.value) receive(props.value); else fetchFirst({});
root.dataset.ready = "yes";
// a frame later: what can be seen without the charts is seen first
if (window.Plotly) loadCharts(); else requestAnimationFrame(() => setTimeout(loadCharts));
