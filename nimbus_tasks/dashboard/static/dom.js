// Making and updating elements. Text is only ever set as text, never as HTML.

/** An element with properties and children: elements, or anything else as text. */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Sets an element's text, if it has another one: what is unchanged is left alone. */
export function setText(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

/** Shows or hides. */
export function show(element, isShown) {
  element.hidden = !isShown;
}

/**
 * Makes the children of `parent` those of `items`, each made once by `make` and then only updated,
 * so that focus and selection stay where they are. `update(element, item)` comes after `make(item)`.
 */
export function sync(parent, items, keyOf, make, update) {
  const there = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let child = there.get(key);
    there.delete(key);
    if (child === undefined) {
      child = make(item);
      child.dataset.key = key;
    }
    update(child, item);
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
  }
  for (const child of there.values()) child.remove();
}

/** The part of an element that is named so. */
export function part(element, name) {
  return element.querySelector(`[data-part="${name}"]`);
}
