const tip = document.getElementById('tip');
for (const figure of document.querySelectorAll('figure[data-points]')) {
  const points = JSON.parse(figure.dataset.points), plot = figure.querySelector('.plot');
  if (!points.length) continue;
  let at = -1;
  const dot = document.createElement('span'); dot.className = 'dot'; dot.hidden = true; figure.append(dot);
  const show = i => {
    at = i; const [x, y, said, picture] = points[i], box = plot.getBoundingClientRect(), all = figure.getBoundingClientRect();
    dot.hidden = tip.hidden = false;
    dot.style.left = box.left - all.left + x * box.width + 'px'; dot.style.top = box.top - all.top + y * box.height + 'px';
    tip.textContent = said;
    const sheet = figure.dataset.sheet && JSON.parse(figure.dataset.sheet);
    if (sheet && picture !== undefined) {
      const small = document.createElement('i'), {side, across} = sheet;
      small.style.cssText = `width:${side}px;height:${side}px;background-position:-${picture % across * side}px -${Math.floor(picture / across) * side}px`;
      small.className = 'sheet'; tip.append(small);
    }
    const left = box.left + scrollX + x * box.width, top = box.top + scrollY + y * box.height;
    tip.style.left = Math.max(4, Math.min(left + 12, scrollX + document.documentElement.clientWidth - tip.offsetWidth - 8)) + 'px';
    tip.style.top = (y > .5 ? top - tip.offsetHeight - 10 : top + 12) + 'px';
  };
  const hide = () => { dot.hidden = tip.hidden = true; };
  plot.addEventListener('pointermove', e => {
    const box = plot.getBoundingClientRect(); let best = 0, least = Infinity;
    points.forEach(([x, y], i) => {
      const d = Math.hypot(box.left + x * box.width - e.clientX, (box.top + y * box.height - e.clientY));
      if (d < least) { least = d; best = i; }
    });
    show(best);
  });
  plot.addEventListener('pointerleave', hide); plot.addEventListener('blur', hide);
  plot.addEventListener('keydown', e => {
    const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[e.key];
    if (step) { e.preventDefault(); show((at + step + points.length) % points.length); }
    if (e.key === 'Escape') hide();
  });
}
