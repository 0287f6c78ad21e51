// Title, what runs where, and what the numbers of this page can and cannot show.

const root = mount(element);
const about = props.about;
const at = (id) => root.querySelector(`[data-id="${id}"]`);
put(at("machine"), [about.name, about.dtype, about.device, about.machine].filter(Boolean).join(" · "));
put(at("honest"), about.notes.join(" "));
show(at("honest"), about.notes.length > 0);
