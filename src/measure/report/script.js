// Draws the charts from the data of the page. Everything they show stands in tables too.
(function () {
  'use strict';
  const root = document.documentElement;
  root.dataset.errors = '0';
  window.addEventListener('error', () => { root.dataset.errors = String(Number(root.dataset.errors) + 1); });
  const data = JSON.parse(document.getElementById('data').textContent);
  const charts = [];

  const css = name => getComputedStyle(root).getPropertyValue(name).trim();
  const size = bytes => {
    const units = ['B', 'kB', 'MB', 'GB', 'TB'];
    let i = 0;
    while (bytes >= 999.5 && i < units.length - 1) { bytes /= 1000; ++i; }
    return (i === 0 ? bytes : bytes.toPrecision(3)) + ' ' + units[i];
  };
  const short = x => (x === 0 ? '0' : Math.abs(x) >= 1e-3 && Math.abs(x) < 1e5 ? String(+x.toPrecision(3)) : x.toExponential(1).replace('.0e', 'e'));
  const power = x => {  // labels of a logarithmic axis: powers of ten only
    const e = Math.log10(x);
    return Math.abs(e - Math.round(e)) < 1e-9 ? short(x) : '';
  };

  function axis(title, extra) {
    return Object.assign({
      title: { display: true, text: title, color: css('--soft') },
      grid: { color: css('--line'), borderColor: css('--line'), tickLength: 4 },
      ticks: { color: css('--soft') }
    }, extra);
  }

  function draw() {
    charts.splice(0).forEach(chart => chart.destroy());
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    Chart.defaults.font.size = 12;
    Chart.defaults.color = css('--soft');
    Chart.defaults.animation = false;
    Chart.defaults.maintainAspectRatio = false;
    Chart.defaults.plugins.tooltip.padding = 10;
    Chart.defaults.plugins.tooltip.boxPadding = 4;
    const add = (id, config) => {
      const canvas = document.getElementById(id);
      if (canvas) charts.push(new Chart(canvas, config));
    };

    if (data.curve) {
      const mark = (p, label, style) => Object.assign({
        type: 'scatter', label, data: [{ x: p.bytes, y: p.loss }], order: 0
      }, style);
      const sets = [{
        type: 'line', label: 'best possible by prediction', data: data.curve.map(p => ({ x: p.bytes, y: p.loss })),
        borderColor: css('--before'), borderWidth: 2.5, pointRadius: 0, pointHitRadius: 6, pointStyle: 'line', order: 1
      }];
      // A ring and a diamond: both can be seen when they fall together.
      if (data.measured) sets.push(mark(data.measured, 'this plan, measured', {
        pointStyle: 'rectRot', pointRadius: 6, pointHoverRadius: 8, backgroundColor: '#e07a1f', borderColor: '#e07a1f'
      }));
      if (data.chosen) sets.push(mark(data.chosen, 'this plan, predicted', {
        pointStyle: 'circle', pointRadius: 10, pointHoverRadius: 12, borderWidth: 3, borderColor: css('--after'), backgroundColor: 'transparent'
      }));
      // Decades of loss need a logarithm, and so does a range that one end would flatten.
      const losses = data.curve.map(p => p.loss).filter(l => l > 0);
      const log = losses.length === data.curve.length && Math.max(...losses) > 12 * Math.min(...losses);
      add('curve', {
        data: { datasets: sets },
        options: {
          scales: {
            x: axis('size of all tensors', {
              type: 'linear', min: Math.min(...data.curve.map(p => p.bytes)), max: Math.max(...data.curve.map(p => p.bytes)), ticks: { color: css('--soft'), callback: size, maxTicksLimit: 9, maxRotation: 0, includeBounds: false }
            }),
            y: axis('loss' + (data.unit ? ', ' + data.unit : ''), {
              type: log ? 'logarithmic' : 'linear', beginAtZero: !log, min: log ? Math.min(...losses) / 1.3 : undefined, ticks: { color: css('--soft'), callback: log ? power : short }
            })
          },
          plugins: {
            legend: { labels: { usePointStyle: true, boxHeight: 7 } },
            tooltip: { callbacks: { label: c => size(c.parsed.x) + ': loss ' + short(c.parsed.y) } }
          }
        }
      });
    }

    if (data.kinds.length) {
      add('kinds', {
        type: 'doughnut',
        data: {
          labels: data.kinds.map(k => k.name),
          datasets: [{ data: data.kinds.map(k => k.bytes), backgroundColor: data.kinds.map(k => k.colour), borderColor: css('--card'), borderWidth: 2 }]
        },
        options: {
          cutout: '64%',
          plugins: {
            legend: { display: false },
            tooltip: { callbacks: { label: c => ' ' + c.label + ': ' + size(c.parsed) } }
          }
        },
        plugins: [{
          id: 'centre',
          afterDraw(chart) {
            const { ctx, chartArea: a } = chart, x = (a.left + a.right) / 2, y = (a.top + a.bottom) / 2;
            ctx.save();
            ctx.textAlign = 'center';
            ctx.fillStyle = css('--ink');
            ctx.font = '650 22px ' + Chart.defaults.font.family;
            ctx.fillText(size(data.kinds.reduce((s, k) => s + k.bytes, 0)), x, y + 2);
            ctx.fillStyle = css('--soft');
            ctx.font = '12px ' + Chart.defaults.font.family;
            ctx.fillText('all tensors', x, y + 21);
            ctx.restore();
          }
        }]
      });
    }

    if (data.scatter.length) {
      const all = data.scatter.flatMap(g => g.points.flatMap(p => [p.x, p.y]));
      const low = Math.min(...all) / 1.6, high = Math.max(...all) * 1.6;
      const loss = title => axis(title, { type: 'logarithmic', min: low, max: high, ticks: { color: css('--soft'), callback: power, maxRotation: 0, autoSkip: false } });
      add('scatter', {
        type: 'scatter',
        data: {
          datasets: data.scatter.map(g => ({
            label: g.name, data: g.points, backgroundColor: g.colour + 'cc', borderColor: css('--card'), borderWidth: .5, pointRadius: 4, order: 0
          })).concat([{
            type: 'line', label: 'equal', data: [{ x: low, y: low }, { x: high, y: high }], borderColor: css('--before'), borderWidth: 1.5,
            borderDash: [5, 5], pointRadius: 0, pointStyle: 'line', order: 1
          }])
        },
        options: {
          scales: { x: loss('predicted'), y: loss('measured') },
          plugins: {
            legend: { position: 'right', labels: { usePointStyle: true, boxHeight: 6, padding: 9 } },
            tooltip: { callbacks: { label: c => (c.raw.name || c.dataset.label) + ': ' + short(c.parsed.x) + ' → ' + short(c.parsed.y) } }
          }
        }
      });
    }

    if (data.layers.length) {
      add('layers', {
        type: 'bar',
        data: {
          labels: data.layers.map((_, i) => i),
          datasets: data.layerKinds.map((k, i) => ({ label: k.name, data: data.layers.map(l => l[i]), backgroundColor: k.colour }))
        },
        options: {
          scales: {
            x: axis('layer', { stacked: true, grid: { display: false }, ticks: { color: css('--soft'), maxTicksLimit: 16, maxRotation: 0 } }),
            y: axis('', { title: { display: false }, stacked: true, ticks: { color: css('--soft'), callback: size, maxTicksLimit: 6 } })
          },
          datasets: { bar: { categoryPercentage: .86, barPercentage: 1 } },
          plugins: {
            legend: { position: 'right', labels: { usePointStyle: true, pointStyle: 'rectRounded', boxHeight: 8, padding: 9 } },
            tooltip: { mode: 'index', callbacks: { title: c => 'layer ' + c[0].label, label: c => ' ' + c.dataset.label + ': ' + size(c.parsed.y) } }
          }
        }
      });
    }
  }

  // For tests: how many charts really have ink.
  function check() {
    const inked = charts.filter(chart => {
      const { width, height } = chart.canvas;
      if (!width || !height) return false;
      const pixels = chart.ctx.getImageData(0, 0, width, height).data;
      let n = 0;
      for (let i = 3; i < pixels.length; i += 4) n += pixels[i] !== 0;
      return n > 500;
    }).length;
    root.dataset.charts = inked + '/' + charts.length;
  }

  draw();
  check();
  window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
})();
